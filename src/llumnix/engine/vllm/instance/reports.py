"""Load reports of an instance: what they say, who hears them, and when the next one is due."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from msgspec.structs import replace

from llumnix.control.latest_steps import FORGOTTEN_S
from llumnix.control.pace import TOLD_LAUNCHER_S, ReportPace
from llumnix.control.prefix_table import PrefixNews
from llumnix.engine.port import InstanceSpec
from llumnix.engine.vllm.instance.driver import LlumletDriver
from llumnix.engine.vllm.instance.scheduler import MigrationSupport
from llumnix.engine.vllm.instance.snapshot import Fixed, instance_snapshot
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceState, Role
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import Report
from llumnix.wire.to_front_end import PrefixesChanged
from llumnix.wire.to_instance import ToInstance

_STOOD_STILL_S = 2.0  # a heartbeat that is so late was not held up: this whole process was stopped, or frozen


class Reports:
    """Called on the engine's main thread, except `beat` and `is_outdated`."""

    def __init__(
        self,
        spec: InstanceSpec,
        scheduler: MigrationSupport,
        driver: LlumletDriver,
        mailbox: Mailbox[ToInstance],
        dispatches_seen: Callable[[], tuple[int, ...]],
        unread: Callable[[], int],
    ) -> None:
        """`unread`: how many messages wait for the main thread; from any thread."""
        self.state = InstanceState.RUNNING
        self.drain_keep = False
        self.asked_to_end = False
        self.role = Role.MIXED
        self.owed = False
        """Something changed since the last one."""
        self._spec = spec
        self._scheduler = scheduler
        self._driver = driver
        self._mailbox = mailbox
        self._dispatches_seen = dispatches_seen
        self._unread = unread
        self._rests = False
        self._in_hand = 0
        self._progress_s = self._beat_s = monotonic()
        self._audience = (spec.book.scheduler, *spec.book.all_front_ends)
        self._number = 0
        self._look_s = self._sent_s = self._told_launcher_s = 0.0
        self._pace = ReportPace(spec.cluster, spec.cluster.instances, spec.cluster.quiet_report_interval_s)
        self._last = self.make()

    @property
    def heartbeat_s(self) -> float:
        return self._pace.pace.heartbeat_s

    def set_size(self, instances: int) -> None:
        """There are so many in the cluster now."""
        self._pace.set_size(instances)

    def take_role(self, role: Role) -> None:
        """Where prompts come first, they are not held back for tokens."""
        self.role = self._driver.role = role
        target_s = self._spec.policy.roles.tpot_target_s
        self._scheduler.limits.target_s = 0.0 if role is Role.PREFILL else target_s

    def after_step(self) -> None:
        self.made_progress()
        if self._progress_s >= self._look_s:
            self.send()

    def begins(self) -> None:
        """The main thread has taken a message; until `made_progress` it counts as one that waits."""
        self._in_hand = 1
        self._rests = False

    def made_progress(self) -> None:
        """The main thread has done something, and goes on with something else."""
        self.owed = True
        self._in_hand = 0
        self._rests = False
        self._progress_s = monotonic()

    def before_sleep(self) -> None:
        """Whoever listens is to know the end of the story, however soon it came after the last report."""
        if self.owed:
            self.send()
        self._rests = True

    def send(self) -> None:
        """If it is time for a report, or something urgent has happened; else what it would say goes with the next
        heartbeat at the latest."""
        now = monotonic()
        self.owed = False
        self._look_s = now + self._spec.cluster.report_interval_s
        went, self._last = self._last.snapshot.goes, self.make()
        if self._last.snapshot.goes != went:  # from now on nobody is to take its place, or somebody is again
            self._mailbox.post_soon((self._spec.book.launcher,), self._last)
        if self._pace.sends(now, self._last.snapshot):
            self._sent_s = now
            self._tell_prefixes()
            self._mailbox.post_soon(self._audience, self._last)

    def introduce(self) -> InstanceSnapshot:
        """A report for a front end that is new. Heartbeats repeat this one from now on: one that repeated an older
        report would not be read there."""
        self._last = self.make()
        return self._last.snapshot

    def _tell_prefixes(self) -> None:
        """Before the report: what that counts as arrived, this knows of."""
        prefixes = self._scheduler.prefixes
        if prefixes is not None and (news := prefixes.news(self._scheduler.requests)) is not None:
            self._post_prefixes(news)

    def tell_all_prefixes(self) -> None:
        """A front end asks, and all of them hear it: news are numbered for all alike."""
        if self._scheduler.prefixes is not None:
            self._post_prefixes(self._scheduler.prefixes.everything())

    def _post_prefixes(self, news: PrefixNews) -> None:
        told = PrefixesChanged(instance=self._driver.info.id, news=news)
        self._mailbox.post_soon(self._spec.book.all_front_ends, told)

    def make(self) -> Report:
        """One of this moment, newer than all that were sent."""
        self._number += 1
        leaving = self._driver.to_decode() if self.role is Role.PREFILL else []
        fixed = Fixed(
            id=self._driver.info.id,
            at=monotonic(),
            seq=self._number,
            state=self.state,
            drain_keep=self.drain_keep,
            asked_to_end=self.asked_to_end,
            pinned=bool(self._driver.engine_pins),
            dispatches_seen=self._dispatches_seen(),
            role=self.role,
            to_decode=len(leaving),
            to_decode_blocks=sum(each.needed_blocks for each in leaving),
            **self._driver.counters,  # type: ignore[typeddict-item]
        )
        snapshot = instance_snapshot(self._scheduler, fixed, self._spec.policy.relief_steps)
        return Report(info=self._driver.info, snapshot=snapshot)

    @property
    def is_outdated(self) -> bool:
        """The last one says that the engine is slow, which nobody knows any more. From any thread."""
        last = self._last.snapshot
        return self._rests and last.slowdown != 1 and monotonic() > last.at + FORGOTTEN_S

    def beat(self) -> None:
        """On the heart's thread: to those who have not just heard a report. The launcher
        needs no load, only to know when an instance serves and whether it is to go. Who sleeps although something waits
        for it does not rest, but hangs; its time to do something begins when this process runs again."""
        now = monotonic()
        unread = self._unread() + self._in_hand
        stood_still = now >= self._beat_s + self.heartbeat_s + _STOOD_STILL_S
        self._beat_s = now
        if stood_still or (self._rests and not unread):
            self._progress_s = now
        audience: list[str] = []
        if now >= self._told_launcher_s + TOLD_LAUNCHER_S:
            self._told_launcher_s = now
            audience.append(self._spec.book.launcher)
        if now >= self._sent_s + self.heartbeat_s / 2:
            self._sent_s = now
            self._pace.beats(now)
            audience += self._audience
        if not audience:
            return
        snapshot = replace(self._last.snapshot, unread=unread, standing_s=now - self._progress_s)
        last = Report(info=self._last.info, snapshot=snapshot)
        for address in audience:
            self._mailbox.post(address, last)
