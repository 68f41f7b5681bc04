"""Messages and copies between simulated instances: how long each takes, and what a lost end does to it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from llumnix.sim.engine.engine import EngineModel
from llumnix.sim.kernel import Kernel, Timer
from llumnix.sim.profiles.cost_model import Profile
from llumnix.types import InstanceId

CopyEnded = Callable[[str | None], None]
"""Called with None if all bytes came, else with why they did not."""


class Endpoint(Protocol):
    """An instance as the network sees it."""

    id: InstanceId
    copies: int
    engine: EngineModel


class _Copy(NamedTuple):
    source: Endpoint
    target: Endpoint
    done: CopyEnded
    timer: Timer


class Network:
    """All links of the cluster. A copy gets its share of the busier of its two ends as of when it starts."""

    def __init__(self, kernel: Kernel, profile: Profile) -> None:
        self.slowness = 1.0
        """How many times longer everything takes now (a fault)."""
        self._kernel = kernel
        self._profile = profile
        self._copies: dict[int, _Copy] = {}
        self._next_copy = 0

    @property
    def message_s(self) -> float:
        return self._profile.host.message_ms / 1e3 * self.slowness

    def deliver(self, action: Callable[..., None], *args: object) -> None:
        """A control message: `action(*args)` runs at the receiver after the travel time."""
        self._kernel.after(self.message_s, action, *args)

    def copy(self, source: Endpoint, target: Endpoint, blocks: int, done: CopyEnded) -> None:
        """Reads blocks of the source into the target, and slows both down meanwhile."""
        stage_s = self._profile.migration.stage_ms / 1e3
        share = max(source.copies, target.copies) + 1
        duration = (stage_s + (self._profile.copy_s(blocks) - stage_s) * share) * self.slowness
        number = self._next_copy = self._next_copy + 1
        timer = self._kernel.after(duration, partial(self._ended, number, None))
        self._copies[number] = _Copy(source, target, done, timer)
        for end in (source, target):
            end.copies += 1
            end.engine.steps.set_slowdown(self._profile.migration.slowdown)

    def lose(self, instance: InstanceId) -> None:
        """An end is gone: its copies break off."""
        for number, copy in list(self._copies.items()):
            if instance in (copy.source.id, copy.target.id):
                self._kernel.cancel(copy.timer)
                self._ended(number, f"the connection to {instance} broke")

    def _ended(self, number: int, why_not: str | None) -> None:
        copy = self._copies.pop(number)
        for end in (copy.source, copy.target):
            end.copies -= 1
            if not end.copies:
                end.engine.steps.set_slowdown(0.0)
        copy.done(why_not)
