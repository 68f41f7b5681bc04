"""What can happen to the global scheduler, and what it can ask for. Every event carries its time, every command its
reason as a sentence with numbers."""

from __future__ import annotations

import msgspec

from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, RequestId


class SchedulerEvent(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    at: float
    """Seconds on the scheduler's own clock."""


class InstanceStarted(SchedulerEvent, frozen=True, kw_only=True, tag=True):
    """The instance can serve; its reports follow."""

    instance: InstanceId


class LoadReported(SchedulerEvent, frozen=True, kw_only=True, tag=True):
    """A report, which is a heartbeat, too. One of an unknown instance makes it known (a restarted scheduler
    learns everything so); one of a lost instance is ignored."""

    snapshot: InstanceSnapshot


class InstanceLost(SchedulerEvent, frozen=True, kw_only=True, tag=True):
    """The instance is gone, on purpose or not. Its id never comes back."""

    instance: InstanceId
    why: str


class MigrationEnded(SchedulerEvent, frozen=True, kw_only=True, tag=True):
    """The source's answer to one of the moves that it was asked for. `request` None: it had nothing (more) to give,
    which ends all that is still asked of the pair."""

    source: InstanceId
    target: InstanceId
    request: RequestId | None
    ok: bool
    why: str = ""


class DrainRequested(SchedulerEvent, frozen=True, kw_only=True, tag=True):
    """Empty the instance; then stop it, or leave it running, empty, with `keep`."""

    instance: InstanceId
    keep: bool = False


class StartRequested(SchedulerEvent, frozen=True, kw_only=True, tag=True):
    count: int


class TimerFired(SchedulerEvent, frozen=True, kw_only=True, tag=True):
    """Answer to `WakeAt`. One that comes early is ignored."""


Event = InstanceStarted | LoadReported | InstanceLost | MigrationEnded | DrainRequested | StartRequested | TimerFired


class SchedulerCommand(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class MoveRequest(SchedulerCommand, frozen=True, kw_only=True, tag=True):
    """To the source's llumlet: give `count` requests away, at most `room_blocks` blocks together. It picks them, unless
    `request` names one, and answers each with `MigrationEnded`."""

    source: InstanceId
    target: InstanceId
    reason: str
    room_blocks: int
    count: int = 1
    request: RequestId | None = None


class SetDraining(SchedulerCommand, frozen=True, kw_only=True, tag=True):
    """To the llumlet: report `DRAINING` (and `drain_keep`) from now on, take no requests and no migrations."""

    instance: InstanceId
    keep: bool
    reason: str


class DrainFinished(SchedulerCommand, frozen=True, kw_only=True, tag=True):
    """The instance is empty and is left running so."""

    instance: InstanceId
    reason: str


class StopInstance(SchedulerCommand, frozen=True, kw_only=True, tag=True):
    """The instance is empty: stop it. `InstanceLost` confirms."""

    instance: InstanceId
    reason: str


class DeclareLost(SchedulerCommand, frozen=True, kw_only=True, tag=True):
    """Nothing was heard of the instance for too long: fence it, kill it, tell the front ends."""

    instance: InstanceId
    why: str


class StartInstances(SchedulerCommand, frozen=True, kw_only=True, tag=True):
    count: int
    reason: str


class WakeAt(SchedulerCommand, frozen=True, kw_only=True, tag=True):
    """Send `TimerFired` at this time. A later `WakeAt` replaces it."""

    at: float


Command = MoveRequest | SetDraining | DrainFinished | StopInstance | DeclareLost | StartInstances | WakeAt
