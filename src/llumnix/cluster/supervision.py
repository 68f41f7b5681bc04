"""What happens to the processes of a server (events) and what can be done about it (commands)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from llumnix.types import InstanceId
from llumnix.wire.messages import Wire

# events


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went on; also the very first event."""


@dataclass(frozen=True, slots=True)
class Forked:
    child: str
    pid: int
    node: str = ""
    """Where, if not on the launcher's own machine."""


@dataclass(frozen=True, slots=True)
class Waits:
    """An instance cannot start yet: there is no room for it on any machine."""

    child: str
    why: str


@dataclass(frozen=True, slots=True)
class Leaves:
    """The node of an instance is being taken away, in `left_s` seconds if that is known."""

    child: str
    why: str
    left_s: float | None = None


@dataclass(frozen=True, slots=True)
class Exited:
    """An instance or a front end ended; `why` holds its exit status and its last words."""

    child: str
    why: str


@dataclass(frozen=True, slots=True)
class SchedulerExited:
    why: str


@dataclass(frozen=True, slots=True)
class NurseryEnded:
    how: str


@dataclass(frozen=True, slots=True)
class InstanceServes:
    """A report came; only the first one is news."""

    instance: InstanceId
    control: str
    """Address of its mailbox."""


@dataclass(frozen=True, slots=True)
class FrontEndServes:
    """The server's address answers; `sentence` tells the user."""

    sentence: str


@dataclass(frozen=True, slots=True)
class StartRequested:
    count: int
    reason: str
    order: int = 0
    """The scheduler's number of it."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """End an instance for good, or (`replace`) to have another one in its place; with `kill` without a word."""

    instance: InstanceId
    reason: str
    kill: bool
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Terminate:
    """The user wants it to end; the second time at once."""


Event = (
    Tick
    | Forked
    | Waits
    | Leaves
    | Exited
    | SchedulerExited
    | NurseryEnded
    | InstanceServes
    | FrontEndServes
    | StartRequested
    | StopRequested
    | Terminate
)

# commands


@dataclass(frozen=True, slots=True)
class SpawnInstance:
    id: InstanceId
    index: int
    slot: int


@dataclass(frozen=True, slots=True)
class SpawnFrontEnd:
    index: int


@dataclass(frozen=True, slots=True)
class SpawnScheduler:
    pass


@dataclass(frozen=True, slots=True)
class Signal:
    """Tells an instance or a front end to end: a front end lets its requests finish, an instance has none worth
    waiting for. With `kill` it is not asked."""

    child: str
    kill: bool = False


@dataclass(frozen=True, slots=True)
class StopScheduler:
    pass


@dataclass(frozen=True, slots=True)
class StopListening:
    """The nursery closes its copy of the HTTP socket."""


class Audience(Enum):
    EVERYBODY = "the scheduler, every front end and every instance"
    SERVING = "every front end and every instance"
    DECIDING = "the scheduler and every front end"
    SCHEDULER = "the scheduler"


@dataclass(frozen=True, slots=True)
class Tell:
    message: Wire
    to: Audience = Audience.EVERYBODY


@dataclass(frozen=True, slots=True)
class Forget:
    """Nobody listens at this address any more."""

    address: str


@dataclass(frozen=True, slots=True)
class Say:
    """One line for the user."""

    text: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """Kill what is left and end with this exit code and, if it is not 0, this sentence."""

    exit_code: int
    sentence: str


Command = (
    SpawnInstance
    | SpawnFrontEnd
    | SpawnScheduler
    | Signal
    | StopScheduler
    | StopListening
    | Tell
    | Forget
    | Say
    | Finish
)
