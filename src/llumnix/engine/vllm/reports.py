"""Load reports of an instance: what they say, who hears them, and when the next one is due."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from msgspec.structs import replace

from llumnix.engine.port import InstanceSpec
from llumnix.engine.vllm.driver import LlumletDriver
from llumnix.engine.vllm.scheduler import MigrationSupport
from llumnix.engine.vllm.snapshot import Fixed, instance_snapshot
from llumnix.types import InstanceState
from llumnix.wire import messages as wire
from llumnix.wire.mailbox import Mailbox


class Reports:
    """Called on the engine's main thread, except `beat`."""

    def __init__(
        self,
        spec: InstanceSpec,
        scheduler: MigrationSupport,
        driver: LlumletDriver,
        mailbox: Mailbox,
        dispatches_seen: Callable[[], tuple[int, ...]],
        unread: Callable[[], int],
    ) -> None:
        """`unread`: how many messages wait for the main thread; from any thread."""
        self.state = InstanceState.RUNNING
        self.drain_keep = False
        self.owed = False
        """Something changed since the last one."""
        self._spec = spec
        self._scheduler = scheduler
        self._driver = driver
        self._mailbox = mailbox
        self._dispatches_seen = dispatches_seen
        self._unread = unread
        self._rests = False
        self._progress_s = monotonic()
        self._audience = (spec.book.scheduler, *spec.book.all_front_ends)
        self._number = 0
        self._due_s = 0.0

    def after_step(self) -> None:
        self.made_progress()
        if self._progress_s >= self._due_s:
            self.send()

    def made_progress(self) -> None:
        """The main thread has done something, and goes on with something else."""
        self.owed = True
        self._rests = False
        self._progress_s = monotonic()

    def before_sleep(self) -> None:
        """Whoever listens is to know the end of the story, however soon it came after the last report."""
        if self.owed:
            self.send()
        self._rests = True

    def send(self) -> None:
        self.owed = False
        self._due_s = monotonic() + self._spec.cluster.report_interval_s
        self._last = self.make()
        self._mailbox.post_soon(self._audience, self._last)

    def make(self) -> wire.Report:
        """One of this moment, newer than all that were sent."""
        self._number += 1
        fixed = Fixed(
            id=self._driver.info.id,
            at=monotonic(),
            seq=self._number,
            state=self.state,
            drain_keep=self.drain_keep,
            pinned=bool(self._driver.engine_pins),
            dispatches_seen=self._dispatches_seen(),
            **self._driver.counters,  # type: ignore[typeddict-item]
        )
        snapshot = instance_snapshot(self._scheduler, fixed, self._spec.policy.relief_steps)
        return wire.Report(info=self._driver.info, snapshot=snapshot)

    def beat(self) -> None:
        """On the heart's thread, once a first one was sent. The launcher needs no load, only to know when an instance
        serves. Who sleeps although something waits for it does not rest, but hangs."""
        unread = self._unread()
        if self._rests and not unread:
            self._progress_s = monotonic()
        snapshot = replace(self._last.snapshot, at=self._progress_s, unread=unread)
        last = wire.Report(info=self._last.info, snapshot=snapshot)
        for address in (self._spec.book.launcher, *self._audience):
            self._mailbox.post(address, last)
