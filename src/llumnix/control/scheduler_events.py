"""What can happen to the global scheduler, and what it can ask for. Every event carries its time, every command its
reason as a sentence with numbers."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from llumnix.control.fleet import Fleet
from llumnix.control.orders import MoveOrder, MoveOutcome
from llumnix.control.scaling import ScalingStep
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, RequestId, Role

ASKED_FOR = "asked for"
"""Why an instance drains, if whoever asked gave no other reason."""


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    at: float
    """Seconds on the scheduler's own clock."""


class InstanceStarted(_Event, frozen=True, kw_only=True, tag=True):
    """The instance can serve; its reports follow."""

    instance: InstanceId


class LoadReported(_Event, frozen=True, kw_only=True, tag=True):
    """A report, which is a heartbeat, too. One of an unknown instance makes it known (a restarted scheduler
    learns everything so); one of a lost instance is ignored."""

    snapshot: InstanceSnapshot


class InstanceLost(_Event, frozen=True, kw_only=True, tag=True):
    """The instance is gone, on purpose or not. Its id never comes back."""

    instance: InstanceId
    why: str


class MigrationEnded(_Event, frozen=True, kw_only=True, tag=True):
    """The source's answer to one of the moves that it was asked for, or to all for which it has no request to give."""

    outcome: MoveOutcome


class DrainRequested(_Event, frozen=True, kw_only=True, tag=True):
    """Empty the instance; then stop it, or leave it running, empty, with `keep`."""

    instance: InstanceId
    keep: bool = False
    timeout_s: float | None = None
    """After this long what is left is replayed elsewhere; None: as the scheduler was made."""
    why: str = ASKED_FOR
    firm: bool = False
    """There is no way back: its process was asked to end, or its node goes."""


class DrainWithdrawn(_Event, frozen=True, kw_only=True, tag=True):
    """The instance is to take requests again (`Drains.why_not_withdrawn` was asked first)."""

    instance: InstanceId


class RoleWanted(_Event, frozen=True, kw_only=True, tag=True):
    """From now on the instance is to be preferred for this. It says so in its reports."""

    instance: InstanceId
    role: Role
    why: str = ASKED_FOR


class DemandHeld(_Event, frozen=True, kw_only=True, tag=True):
    """So much waits at a front end, sent to no instance yet."""

    front_end: int
    requests: int
    tokens: int
    """Of the prompts."""


class RequestsReplayed(_Event, frozen=True, kw_only=True, tag=True):
    """A front end's answer to `ReplayRest`."""

    instance: InstanceId
    count: int


class CachedElsewhere(_Event, frozen=True, kw_only=True, tag=True):
    """A front end's answer to `AskWhereCached`: of its requests there, those whose prompts another instance has, and
    where each had best go."""

    instance: InstanceId
    where: dict[RequestId, InstanceId]
    front_ends: int = 1
    """So many were asked."""


class StartRequested(_Event, frozen=True, kw_only=True, tag=True):
    count: int
    replaces: InstanceId | None = None
    """Who is to go when they serve: they have its role."""


class FleetReported(_Event, frozen=True, kw_only=True, tag=True):
    """What the launcher has and starts: at each change."""

    fleet: Fleet


class RoundDue(_Event, frozen=True, kw_only=True, tag=True):
    """Answer to `RoundAt`. One that comes early is ignored."""


SchedulerEvent = (
    InstanceStarted
    | LoadReported
    | InstanceLost
    | MigrationEnded
    | DrainRequested
    | DrainWithdrawn
    | RoleWanted
    | RequestsReplayed
    | CachedElsewhere
    | DemandHeld
    | StartRequested
    | FleetReported
    | RoundDue
)


class DrainOutcome(StrEnum):
    DRAINING = "draining"
    EMPTY = "empty"
    CUT_OFF = "cut off"
    """It was ended with requests that could be neither moved nor replayed: they failed."""
    LOST = "lost"
    """It died before it was empty; its requests went on elsewhere as after any death."""
    WITHDRAWN = "withdrawn"
    """It takes requests again."""


class DrainReport(msgspec.Struct, frozen=True, kw_only=True):
    """How the drain of one instance went, or goes. Counts are of requests."""

    instance: InstanceId
    keep: bool
    why: str
    outcome: DrainOutcome
    requests: int
    """Running or waiting there when the drain began. A few more may have come before every front end knew."""
    moved: int
    replayed: int
    finished: int
    """Ended there, or were given up by their clients."""
    left: int
    seconds: float
    """From the order until it was empty, or until now."""


class _Command(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class MoveRequest(_Command, frozen=True, kw_only=True, tag=True):
    """To the source's llumlet, which answers for each request with `MigrationEnded`."""

    source: InstanceId
    order: MoveOrder


class SetDraining(_Command, frozen=True, kw_only=True, tag=True):
    """To the llumlet: report `DRAINING` (and `drain_keep`) from now on, take no requests and no migrations. Without
    `draining`: report `RUNNING`, take them again."""

    instance: InstanceId
    keep: bool
    reason: str
    draining: bool = True


class SetRole(_Command, frozen=True, kw_only=True, tag=True):
    """To the instance: report this role from now on, and act on it. To the launcher: whoever takes its place has it."""

    instance: InstanceId
    role: Role
    reason: str


class RolesAdvised(_Command, frozen=True, kw_only=True, tag=True):
    """For the record: roles would be changed to these, if they were adaptive."""

    changes: dict[InstanceId, Role]
    reason: str

    def __str__(self) -> str:
        return (
            f"roles would change: {', '.join(f'{name} {role}' for name, role in self.changes.items())} ({self.reason})"
        )


class AskWhereCached(_Command, frozen=True, kw_only=True, tag=True):
    """To the front ends: the instance drains; which instances have what of its requests' prompts?"""

    instance: InstanceId


class ReplayRest(_Command, frozen=True, kw_only=True, tag=True):
    """To every front end: start the requests that you have on this instance anew elsewhere, if that is exact."""

    instance: InstanceId
    reason: str


class DrainFinished(_Command, frozen=True, kw_only=True, tag=True):
    """For the record: the drain has ended. `StopInstance` follows unless the instance is kept."""

    report: DrainReport
    reason: str


class StopInstance(_Command, frozen=True, kw_only=True, tag=True):
    """Stop the instance for good; it is empty, unless `kill`. `InstanceLost` confirms."""

    instance: InstanceId
    reason: str
    kill: bool = False


class DeclareLost(_Command, frozen=True, kw_only=True, tag=True):
    """Nothing was heard of the instance for too long: fence it, tell the front ends, kill it, have another one in its
    place."""

    instance: InstanceId
    why: str


class StartInstances(_Command, frozen=True, kw_only=True, tag=True):
    count: int
    reason: str
    order: int
    """Number of this order; the launcher repeats it in its counts (`Fleet.last_order`)."""
    replaces: InstanceId | None = None
    """They have the role of this one; None: the roles that are missing."""


class ScalingDecided(_Command, frozen=True, kw_only=True, tag=True):
    """For the record: auto-scaling did this, or would do it (`step.carried_out`)."""

    step: ScalingStep

    def __str__(self) -> str:
        return f"auto-scaling {'does' if self.step.carried_out else 'would'} {self.step}"


class RoundAt(_Command, frozen=True, kw_only=True, tag=True):
    """Send `RoundDue` at this time. A later `RoundAt` replaces it."""

    at: float


SchedulerCommand = (
    MoveRequest
    | SetDraining
    | SetRole
    | RolesAdvised
    | AskWhereCached
    | ReplayRest
    | DrainFinished
    | StopInstance
    | DeclareLost
    | StartInstances
    | ScalingDecided
    | RoundAt
)
