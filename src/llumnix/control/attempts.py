"""All that a llumlet knows: the migrations that are under way, one machine each, and those that ended lately."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from llumnix.control.commands import AnyCommand
from llumnix.control.migration import SOURCE, TARGET
from llumnix.control.migration_source import MigrationSource
from llumnix.control.migration_target import MigrationTarget, TargetState
from llumnix.control.transitions import follow
from llumnix.types import Epoch, RequestId

REMEMBER_S = 300.0
"""How long an attempt that is over is remembered. A message that is later than that can start its attempt anew; no
harm comes of it, because the front end's fences keep the stream whole, but room is reserved in vain for a while."""

REMEMBERED = 4096
"""At most so many."""


class Ended(msgspec.Struct, frozen=True):
    """The last attempt to bring a request here that is over."""

    epoch: Epoch
    adopted: bool
    at: float


class Attempts(msgspec.Struct, kw_only=True):
    """Plain data."""

    epoch: Epoch = Epoch(0)
    """The largest that this llumlet has used or seen. A new attempt gets the next one, and so a larger one than every
    attempt that brought the request here, or failed here."""
    draining: bool = False
    sources: dict[RequestId, MigrationSource] = {}
    targets: dict[RequestId, MigrationTarget] = {}
    ended: dict[RequestId, Ended] = {}
    """Oldest first."""
    wake_at_s: float | None = None
    late: int = 0
    """Doubled, overtaken and stale messages so far, of attempts that are over."""

    def follow_source(self, source: MigrationSource, at: float, event: object) -> list[AnyCommand]:
        commands = follow(SOURCE, source, at, event)
        if source.over:
            del self.sources[source.request]
            self.late += source.late
        return commands

    def follow_target(self, target: MigrationTarget, at: float, event: object) -> list[AnyCommand]:
        commands = follow(TARGET, target, at, event)
        if target.over:
            del self.targets[target.request]
            self.late += target.late
            self.remember(target.request, Ended(target.epoch, target.state is TargetState.SETTLED, at))
        return commands

    def remember(self, request: RequestId, ended: Ended) -> None:
        """From now on that attempt, and older ones, cannot begin here any more."""
        last = self.ended.get(request)
        if last is not None and last.epoch >= ended.epoch:
            return
        self.ended.pop(request, None)
        self.ended[request] = ended
        while ended.at - self.ended[oldest := next(iter(self.ended))].at > REMEMBER_S or len(self.ended) > REMEMBERED:
            del self.ended[oldest]

    def has_ended(self, request: RequestId, epoch: Epoch) -> bool:
        ended = self.ended.get(request)
        return ended is not None and epoch <= ended.epoch

    def was_adopted(self, request: RequestId, epoch: Epoch) -> bool:
        ended = self.ended.get(request)
        return ended is not None and epoch == ended.epoch and ended.adopted

    @property
    def machines(self) -> Iterator[MigrationSource | MigrationTarget]:
        yield from self.sources.values()
        yield from self.targets.values()

    @property
    def next_deadline_s(self) -> float | None:
        deadlines = (machine.deadline_s for machine in self.machines)
        return min((each for each in deadlines if each is not None), default=None)

    @property
    def incoming(self) -> int:
        """Those that run here already do not count."""
        return sum(target.state is not TargetState.ADOPTED for target in self.targets.values())

    @property
    def outgoing(self) -> int:
        return len(self.sources)

    def is_moving(self, request: RequestId) -> bool:
        """It is on its way in or out, or came so recently that the front end has not confirmed it: it can not be moved
        then."""
        return request in self.sources or request in self.targets

    def validate(self) -> None:
        """Raises AssertionError, in words, if what is known contradicts itself."""
        both = self.sources.keys() & self.targets.keys()
        assert not both, f"{sorted(both)} move in and out at the same time"
        for machine in self.machines:
            assert not machine.over, f"{machine.request} is {machine.state} and still held"
            assert machine.epoch <= self.epoch, f"{machine.request} has epoch {machine.epoch} of the future"
            machine.validate()
        deadline_s = self.next_deadline_s
        if deadline_s is not None:
            assert self.wake_at_s is not None, "nobody will wake the machines"
            assert self.wake_at_s <= deadline_s, f"the alarm at {self.wake_at_s} is after the deadline {deadline_s}"
