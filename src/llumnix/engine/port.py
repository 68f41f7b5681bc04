"""The seam between the processes of a server and the engine that runs in them.

An engine is a module with the four functions of `Boot`. The nursery (cluster/nursery.py) imports it once,
prepares it once, and forks every instance and every front end from there: a `Setup` is inherited by fork,
never sent, so it may hold anything. No function of the module may start a thread before the fork.
"""

from __future__ import annotations

import signal
import socket
from dataclasses import dataclass, field
from typing import Any, Protocol

from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig
from llumnix.policy.classes import Classes
from llumnix.types import InstanceId, Role
from llumnix.wire.addresses import AddressBook

END_NOW = signal.SIGINT
"""The launcher's word to an instance that is empty, or whose front ends are gone."""

ONE_THREAD_TO_FORK = "LLUMNIX_ONE_THREAD_TO_FORK"
"""An environment variable: 1 where `OMP_NUM_THREADS=1` is nobody's wish, but what the process needs that forks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSpec:
    """One incarnation of one instance.

    The instance listens at `book.instance(id)`, connects to the sockets of all front ends, and sends its
    first `Report` to the launcher as well as to the scheduler and the front ends: that is what "ready" means.
    `END_NOW` ends it: `run_instance` returns within a few seconds. SIGTERM, which the launcher never sends, asks it to
    drain: it reports `DRAINING` from then on, and serves until the scheduler has emptied it.

    Its process has a temporary folder of its own (`tempfile.gettempdir()`), which goes when it ends, however it does,
    and with it the shared memory that is noted there (engine/shared_memory.py). Processes that it started and that run
    on then are ended before its slot is used again.
    """

    id: InstanceId
    index: int
    """Identity on vLLM's sockets: two bytes, so used again after 65,536 instances; the id never is."""
    slot: int
    """Place among the instances of the server: the smallest one that is free, so a restart gets it back."""
    device_slot: int
    """Which of the visible devices are its own: the n-th group of as many as it has workers. With
    `cluster.instances_per_gpu` so many slots have one group in common."""
    role: Role = Role.MIXED
    """What it is preferred for until it is told otherwise: as the one before it was."""
    node: str
    book: AddressBook
    policy: PolicyConfig
    migration: MigrationConfig
    cluster: ClusterConfig
    secret: bytes = field(repr=False)
    """Shared by the processes of one server; whoever connects to a data socket shows that it knows it."""

    @property
    def ways(self) -> list[str]:
        """What may move its blocks beside sockets."""
        shared = self.cluster.instances_per_gpu > 1
        return [way for way in self.migration.ways if shared or way != "same-gpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEndSpec:
    """One front end of `book.front_ends`. A restarted one has the same index.

    SIGTERM ends it: it stops accepting, lets the running requests finish for at most
    `cluster.shutdown_timeout_s`, and `run_front_end` returns. It tells the launcher that it lives
    (`wire.to_launcher.FrontEndLives`) within `cluster.start_timeout_s` from when it was forked and an instance serves,
    and goes on to do so every few seconds, or counts as one that hangs.
    """

    index: int
    book: AddressBook
    policy: PolicyConfig
    migration: MigrationConfig
    cluster: ClusterConfig
    admin_socket: socket.socket | None = None
    """Listens where the admin routes are served; None: beside the others, on the main socket."""
    classes: Classes | None = None
    """By these, requests are admitted and have their turns; None: all are sent at once."""
    secret: bytes = field(default=b"", repr=False)
    """Shared by the processes of one server, and in no file."""


class Setup(Protocol):
    """What `prepare` makes of the flags; all but these is the engine's own."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int:
        """The one that was asked for; 0 for any."""

    @property
    def example(self) -> tuple[str, dict[str, str | int]] | None:
        """A route and the body of a request that a user may try, without the model's name."""


class Boot(Protocol):
    """What an engine module offers. `Any` is the module's own `Setup`."""

    def prepare(self, argv: list[str], model: str) -> Any:
        """Parses the engine's flags and reads the model's configuration; UsageError in one sentence."""

    def listen(self, setup: Any) -> socket.socket:
        """Opens the HTTP socket, which all front ends share; UsageError when the port is taken."""

    def run_instance(self, setup: Any, spec: InstanceSpec) -> None:
        """Blocks until the instance ends; an exception ends the process with exit code 1."""

    def run_front_end(self, setup: Any, spec: FrontEndSpec, sock: socket.socket) -> None:
        """Blocks until the front end ends."""
