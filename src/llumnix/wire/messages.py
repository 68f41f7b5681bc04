"""Control messages between our processes: msgspec structs, one tagged union, versioned by a leading byte.

Tokens never travel here; they go from an instance straight to the front end on vLLM's own sockets. The
migration protocol (control/messages.py) travels inside `Peer` and `Arbitration`.
"""

from __future__ import annotations

from math import inf

import msgspec

from llumnix.control.fleet import Fleet
from llumnix.control.messages import AnyMessage
from llumnix.control.orders import MoveOrder, MoveOutcome
from llumnix.control.scaling import ScalingMode, ScalingStep
from llumnix.control.scheduler_events import (
    ASKED_FOR,
    DeclareLost,
    DrainReport,
    ReplayRest,
    SchedulerCommand,
    SetDraining,
    StartInstances,
    StopInstance,
)
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.report.records import MigrationRecord
from llumnix.types import InstanceId, RequestId

WIRE_VERSION = 1


class Wire(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all wire messages."""


class InstanceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach an instance. `index` is its identity on vLLM's sockets, used again after 65,536 others."""

    id: InstanceId
    index: int
    slot: int
    """Its place among the instances; the successor of a dead one gets the same. vLLM's metrics are labelled by it."""
    pid: int
    node: str
    control: str
    """Address of its mailbox."""
    data: str
    """Address of its transport (KV blocks), opaque to all but the transport."""


# an instance, to the scheduler and to every front end


class Report(Wire, frozen=True, kw_only=True, tag=True):
    """Load, heartbeat and introduction in one: whoever hears the first one knows the instance."""

    info: InstanceInfo
    snapshot: InstanceSnapshot


class RequestRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request on one instance, as `GET /llumnix/v1/requests` shows it (`request` is the engine's id)."""

    request: RequestId
    client_id: str
    """The id that vLLM's server gave the sequence; `client_visible_id` makes the client's of it."""
    front_end: int
    priority: int
    prompt_tokens: int
    output_tokens: int
    state: str
    migrations: int
    why_pinned: str = ""


class Requests(Wire, frozen=True, kw_only=True, tag=True):
    """Answer to `ListRequests`."""

    query: int
    instance: InstanceId
    rows: tuple[RequestRow, ...]


# instance to instance, and instance to front end and back


class Peer(Wire, frozen=True, kw_only=True, tag=True):
    """A step of the migration protocol; `sender` is where answers go."""

    sender: InstanceInfo
    message: AnyMessage


class Arbitration(Wire, frozen=True, kw_only=True, tag=True):
    """A `Doubt` to the front end that owns the stream, or its `Verdict` to either side."""

    message: AnyMessage


# to an instance


class MoveOut(Wire, frozen=True, kw_only=True, tag=True):
    """Answered with a `MoveAnswer` to `reply_to` for each request that goes, and for what does not."""

    order: MoveOrder
    target: InstanceInfo
    reply_to: str


class ClusterSize(Wire, frozen=True, kw_only=True, tag=True):
    """So many instances there are, or will be: they share what a listener can hear. From the scheduler, to instances
    that do not know it yet."""

    instances: int


class ListRequests(Wire, frozen=True, kw_only=True, tag=True):
    query: int
    reply_to: str
    like: str = ""
    """Only those whose client's id has this in it."""


class FrontEndLost(Wire, frozen=True, kw_only=True, tag=True):
    """The front end died; its requests have no reader any more and are aborted, and it answers no question."""

    front_end: int
    until_unix_s: float = inf
    """A request that arrived later, by the front ends' clock, is of the one that took its place: this may come late."""


# from a worker to its own instance


class PullEnded(Wire, frozen=True, kw_only=True, tag=True):
    """Worker `rank` finished, or gave up, pulling the blocks of one stage."""

    request: RequestId
    epoch: int
    stage: int
    rank: int
    ok: bool
    reason: str = ""
    bytes_read: int = 0
    quarantined: bool = False


class BlocksReleased(Wire, frozen=True, kw_only=True, tag=True):
    """No late byte of a quarantined pull can land any more."""

    request: RequestId
    epoch: int
    stage: int
    rank: int


# from an instance


class MoveAnswer(Wire, frozen=True, kw_only=True, tag=True):
    """To whoever gave the order."""

    outcome: MoveOutcome


# launcher, scheduler, front ends


class InstanceStarting(Wire, frozen=True, kw_only=True, tag=True):
    """The launcher started a process; its first report follows when it can serve."""

    instance: InstanceId
    index: int
    pid: int
    node: str


class InstanceServing(Wire, frozen=True, kw_only=True, tag=True):
    """To the scheduler: it serves, so its heartbeats are due, even if the scheduler has not heard one yet."""

    instance: InstanceId


class InstanceGone(Wire, frozen=True, kw_only=True, tag=True):
    """The instance will never speak again: it exited, or is fenced. Sent to everybody."""

    instance: InstanceId
    index: int
    why: str
    expected: bool
    """True after a drain or a stop; False if it died or stalled."""


class FleetChanged(Wire, frozen=True, kw_only=True, tag=True):
    """To the scheduler, from the launcher: what there is and what starts, at each change."""

    fleet: Fleet


class DrainInstance(Wire, frozen=True, kw_only=True, tag=True):
    """To the scheduler: empty the instance by migration, then stop it (unless `keep`)."""

    instance: InstanceId
    keep: bool = False
    query: int = 0
    reply_to: str = ""
    """Empty: nobody waits for an answer."""
    timeout_s: float | None = None
    """After this long what is left is replayed elsewhere; None: as configured."""
    why: str = ASKED_FOR
    firm: bool = False
    """There is no way back: its node goes."""
    spare_last: bool = False
    """Refuse if no other instance takes requests."""


class UndrainInstance(Wire, frozen=True, kw_only=True, tag=True):
    """To the scheduler: let a draining or drained instance take requests again."""

    instance: InstanceId
    query: int
    reply_to: str


class ReplayedElsewhere(Wire, frozen=True, kw_only=True, tag=True):
    """A front end's answer to `ReplayRest`."""

    instance: InstanceId
    count: int


class ListDrains(Wire, frozen=True, kw_only=True, tag=True):
    """To the scheduler."""

    query: int
    reply_to: str


class Drains(Wire, frozen=True, kw_only=True, tag=True):
    """Those under way, and the last ones that ended."""

    query: int
    reports: tuple[DrainReport, ...]


class AddInstances(Wire, frozen=True, kw_only=True, tag=True):
    """To the scheduler: start `count` more."""

    count: int
    query: int
    reply_to: str


class Answer(Wire, frozen=True, kw_only=True, tag=True):
    """To whoever asked with a `query` number."""

    query: int
    ok: bool
    why: str = ""


class ScalingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Size of the cluster, and what auto-scaling makes of it."""

    mode: ScalingMode
    min_instances: int
    max_instances: int
    serving: int
    draining: int
    starting: int
    failing: int
    """Instances that failed to start more than once in a row, and are tried again."""
    now: str
    """What the last look found, in words."""
    last: ScalingStep | None
    starts: int
    """Instances that auto-scaling started so far; in advise mode, would have."""
    drains: int
    instance_seconds: float
    """Σ of the times that instances existed, since this scheduler began."""
    watched_s: float
    """For how long it has watched; `instance_seconds / watched_s` is the time-weighted number of instances."""


class SchedulerAlive(Wire, frozen=True, kw_only=True, tag=True):
    """The scheduler's heartbeat to the front ends (for `llumnix status`)."""

    pid: int
    scaling: ScalingStatus | None = None


class ListMigrations(Wire, frozen=True, kw_only=True, tag=True):
    """Front end to front end: each keeps the records of its own streams."""

    query: int
    limit: int
    reply_to: str


class Migrations(Wire, frozen=True, kw_only=True, tag=True):
    query: int
    records: tuple[MigrationRecord, ...]
    more: bool = False
    """A further part of the answer follows."""


class DoYourPart(Wire, frozen=True, kw_only=True, tag=True):
    """Front end to front end, of something that concerns all of them. Answered with a `PartDone`."""

    query: int
    part: str
    """`follow`: read the state of the server anew; `abort`: these requests, or all; `load`: tell it."""
    reply_to: str
    request_ids: tuple[str, ...] = ()
    """As clients know them."""


class PartDone(Wire, frozen=True, kw_only=True, tag=True):
    query: int
    count: int = 0
    """Requests that were aborted, or that are served."""


class MigrateByHand(Wire, frozen=True, kw_only=True, tag=True):
    """Front end to the front end that owns the stream: move this engine request."""

    query: int
    request: RequestId
    target: InstanceId
    reply_to: str


class MigrateAnswer(Wire, frozen=True, kw_only=True, tag=True):
    """`record` says what became of it; None when there was no attempt, and then `why` says why not."""

    query: int
    status: int
    """As HTTP: 200, 404, 409 or 504."""
    record: MigrationRecord | None = None
    why: str = ""


Any = (
    Report
    | Requests
    | Peer
    | Arbitration
    | MoveOut
    | SetDraining
    | ClusterSize
    | ListRequests
    | FrontEndLost
    | PullEnded
    | BlocksReleased
    | MoveAnswer
    | InstanceStarting
    | InstanceServing
    | InstanceGone
    | StartInstances
    | StopInstance
    | DeclareLost
    | FleetChanged
    | DrainInstance
    | UndrainInstance
    | ReplayRest
    | ReplayedElsewhere
    | ListDrains
    | Drains
    | AddInstances
    | Answer
    | SchedulerAlive
    | ListMigrations
    | Migrations
    | DoYourPart
    | PartDone
    | MigrateByHand
    | MigrateAnswer
)

Mail = Wire | SchedulerCommand
"""Some of the scheduler's commands travel as they are."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Any)


def encode(message: Mail) -> bytes:
    return bytes((WIRE_VERSION,)) + _encoder.encode(message)


def decode(frame: bytes) -> Mail:
    """Raises ValueError on anything that is not a message of this version."""
    if not frame or frame[0] != WIRE_VERSION:
        raise ValueError(f"not a control message of version {WIRE_VERSION}")
    try:
        message: Mail = _decoder.decode(memoryview(frame)[1:])
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error
    return message
