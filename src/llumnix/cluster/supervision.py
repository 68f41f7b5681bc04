"""What happens to the processes of a server (events) and what can be done about it (commands).

What the nursery says and is told, and what the scheduler asks for, is heard and said as it is
(`cluster/nursery_messages.py`, `control/scheduler_events.py`); here is the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from llumnix.cluster.nursery_messages import (
    Cleared,
    Exited,
    Forked,
    ForkFrontEnd,
    ForkInstance,
    HasRoom,
    Leaving,
    StopListening,
    Waiting,
)
from llumnix.control.scheduler_events import DeclareLost, SetRole, StartInstances, StopInstance
from llumnix.types import InstanceId
from llumnix.wire.outbox import Mail
from llumnix.wire.to_launcher import FrontEndLives, SchedulerLives

# events


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Time went on; also the very first event."""


@dataclass(frozen=True, slots=True)
class SchedulerExited:
    why: str


@dataclass(frozen=True, slots=True)
class NurseryEnded:
    how: str


@dataclass(frozen=True, slots=True)
class InstanceServes:
    """A report came; only the first one is news, and one in which `goes` or `drains` is another."""

    instance: InstanceId
    control: str
    """Address of its mailbox."""
    goes: bool = False
    """It is to end for good."""
    drains: bool = False
    """It takes no requests: it is to end, or is kept empty."""


@dataclass(frozen=True, slots=True)
class FrontEndServes:
    """The server's address answers; `sentence` tells the user."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Terminate:
    """The user wants it to end; the second time at once."""


SupervisorEvent = (
    TimePassed
    | Forked
    | Waiting
    | HasRoom
    | Leaving
    | Exited
    | Cleared
    | SchedulerExited
    | SchedulerLives
    | NurseryEnded
    | InstanceServes
    | FrontEndServes
    | FrontEndLives
    | StartInstances
    | StopInstance
    | SetRole
    | DeclareLost
    | Terminate
)

# commands


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
    """As `Signal`, to the scheduler."""

    kill: bool = False


class Audience(Enum):
    EVERYBODY = "the scheduler, every front end and every instance"
    SERVING = "every front end and every instance"
    DECIDING = "the scheduler and every front end"
    SCHEDULER = "the scheduler"


@dataclass(frozen=True, slots=True)
class Announce:
    message: Mail
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


SupervisorCommand = (
    ForkInstance
    | ForkFrontEnd
    | SpawnScheduler
    | Signal
    | StopScheduler
    | StopListening
    | Announce
    | Forget
    | Say
    | Finish
)
