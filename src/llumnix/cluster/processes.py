"""A process as the supervisor knows it: an instance or a front end, the place that it has, and how it fares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from llumnix.types import InstanceId, Role

STOP_TIMEOUT_S = 10.0
"""Between SIGTERM and SIGKILL for a process that has nothing left to finish."""
SILENT_S = 30.0
"""After that, at the earliest, something hangs. Where cores are short a start may take some seconds."""

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_HEALTHY_S = 60.0  # who lived this long is forgiven its earlier failures


@dataclass(slots=True)
class Retries:
    """How often in a row something failed, and so how long to wait before the next attempt."""

    failures: int = 0
    not_before_s: float = 0.0

    def failed(self, at: float, lived_s: float) -> None:
        """The first failure of something that lived is no pattern yet: it is tried again at once."""
        if lived_s >= _HEALTHY_S:
            self.failures = 0
        at_once = lived_s > 0 and self.failures == 0
        pause_s = 0.0 if at_once else min(_FIRST_PAUSE_S * 2 ** min(self.failures, 10), _LONGEST_PAUSE_S)
        self.not_before_s = at + pause_s
        self.failures += 1


@dataclass(slots=True)
class Watch:
    """Whether something that should be heard again and again has fallen silent: then it hangs."""

    patience_s: float
    due_s: float | None = None
    """None: nothing is expected of it."""

    def heard(self, at: float) -> None:
        self.due_s = at + self.patience_s

    def finds_it_hanging(self, at: float) -> bool:
        """True once."""
        if self.due_s is None or at < self.due_s:
            return False
        self.due_s = None
        return True


@dataclass(slots=True)
class Process:
    """A process that runs, or is being forked (`pid` is None until the nursery says so)."""

    name: str
    forked_s: float
    pid: int | None = None
    kill_at_s: float | None = None
    end: str = ""
    """Why it is being ended; empty while it is meant to live."""
    killed_s: float | None = None
    """When SIGKILL was sent to it."""


@dataclass(slots=True)
class FrontEndProcess(Process):
    index: int = field(kw_only=True)
    watch: Watch = field(kw_only=True)
    """From its first heartbeat on, which comes when it begins to serve; until then `kill_at_s` counts."""


@dataclass(frozen=True, slots=True)
class Leave:
    """An instance has to be empty by then (on the supervisor's clock), for its machine goes."""

    why: str
    by_s: float


@dataclass(slots=True)
class Instance(Process):
    index: int = field(kw_only=True)
    slot: int = field(kw_only=True)
    node: str = ""
    """The machine it is on, known once it is forked."""
    control: str = ""
    """Address of its mailbox, known once it serves."""
    served_since_s: float | None = None
    replace: bool = True
    """Whether its slot is filled again after its end."""
    goes: bool = False
    """It says that it drains and is not kept: its slot goes with it, however it ends."""
    drains: bool = False
    """It says that it takes no requests."""
    leaves: Leave | None = None
    """Another one was started for it already: its slot goes with it, however it ends."""

    @property
    def id(self) -> InstanceId:
        return InstanceId(self.name)

    @property
    def starting(self) -> bool:
        return self.served_since_s is None

    @property
    def waits_for_room(self) -> bool:
        """Its time to start has not begun: there is no place for it anywhere."""
        return self.starting and self.kill_at_s is None and not self.end

    def served_s(self, at: float) -> float:
        return 0.0 if self.served_since_s is None else at - self.served_since_s


ProcessT = TypeVar("ProcessT", bound=Process)


@dataclass(slots=True)
class Place(Generic[ProcessT]):
    """Room for one process; empty while it waits for its turn or for the end of a pause."""

    attempts: Retries = field(default_factory=Retries)
    process: ProcessT | None = None
    extra: bool = False
    """Asked for while others serve, and never filled yet: not worth trying for ever."""
    role: Role = Role.MIXED
    """Of the instance that is here, and of whoever comes after it."""

    def due(self, at: float) -> bool:
        return self.process is None and self.attempts.not_before_s <= at
