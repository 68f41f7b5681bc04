"""Where every process of one server listens, so that nobody has to be told one by one.

On one machine all addresses follow from a private folder. Between machines the launcher's own machine has fixed ports,
and an instance takes any port of its node and tells it in its first report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from llumnix.hosts import bracketed
from llumnix.types import InstanceId
from llumnix.wire.curve import CurveKeys

_MAX_SOCKET_PATH = 107  # bytes; sockaddr_un on Linux


class FrontAddresses(msgspec.Struct, frozen=True):
    """Where one front end listens."""

    control: str
    """Its mailbox."""
    requests: str
    """vLLM's request socket (it binds, engines connect)."""
    tokens: str
    """vLLM's token socket (it binds, engines connect)."""


class AddressBook(msgspec.Struct, frozen=True, kw_only=True):
    """One process's copy: `run_dir` and `host` are its own machine's, all else is the same everywhere."""

    run_dir: str
    """Private folder (mode 0700) of this server on this machine."""
    launcher: str
    scheduler: str
    fronts: tuple[FrontAddresses, ...]
    host: str | None = None
    """Address of this machine at which the others reach it; None: all are on one machine, over unix sockets."""
    keys: CurveKeys | None = None
    """Between machines, what all ZeroMQ sockets are guarded with."""

    @property
    def front_ends(self) -> int:
        return len(self.fronts)

    def front_end(self, index: int) -> str:
        """Mailbox of a front end."""
        return self.fronts[index].control

    @property
    def all_front_ends(self) -> tuple[str, ...]:
        return tuple(front.control for front in self.fronts)

    def instance(self, instance: InstanceId) -> str:
        """Where an instance of this machine binds its mailbox; the mailbox then knows its real address."""
        return _ipc(self.run_dir, instance) if self.host is None else tcp(self.host, "*")

    def on_machine(self, host: str, run_dir: Path) -> AddressBook:
        """The copy for processes on another machine."""
        return msgspec.structs.replace(self, host=host, run_dir=str(run_dir))


def on_one_machine(run_dir: Path, front_ends: int = 1) -> AddressBook:
    """Unix sockets below one private folder."""
    fronts = tuple(
        FrontAddresses(_ipc(run_dir, f"front-{front}"), _ipc(run_dir, f"in-{front}"), _ipc(run_dir, f"out-{front}"))
        for front in range(front_ends)
    )
    return AddressBook(
        run_dir=str(run_dir), launcher=_ipc(run_dir, "launcher"), scheduler=_ipc(run_dir, "scheduler"), fronts=fronts
    )


def ports_needed(front_ends: int) -> int:
    """Ports that `between_machines` gives out."""
    return 2 + 3 * front_ends


def between_machines(run_dir: Path, host: str, ports: Sequence[int], keys: CurveKeys) -> AddressBook:
    """TCP on the launcher's machine, at `ports` that it keeps free for this; see `ports_needed`."""
    launcher, scheduler, *rest = (tcp(host, port) for port in ports)
    fronts = tuple(FrontAddresses(*rest[first : first + 3]) for first in range(0, len(rest), 3))
    return AddressBook(
        run_dir=str(run_dir), launcher=launcher, scheduler=scheduler, fronts=fronts, host=host, keys=keys
    )


def tcp(host: str, port: int | str) -> str:
    return f"tcp://{bracketed(host)}:{port}"


def _ipc(run_dir: Path | str, name: str) -> str:
    path = f"{run_dir}/{name}"
    assert len(path.encode()) <= _MAX_SOCKET_PATH, f"socket path too long: {path}"
    return f"ipc://{path}"
