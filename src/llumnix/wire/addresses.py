"""Where every process of one server listens: derived from one run directory, so nobody has to be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llumnix.types import InstanceId

_MAX_SOCKET_PATH = 107  # bytes; sockaddr_un on Linux


@dataclass(frozen=True, slots=True)
class AddressBook:
    """Unix-socket addresses below one private directory (mode 0700) on one machine."""

    run_dir: Path
    front_ends: int = 1

    @property
    def scheduler(self) -> str:
        return self._ipc("scheduler")

    @property
    def launcher(self) -> str:
        return self._ipc("launcher")

    def front_end(self, index: int) -> str:
        """Mailbox of a front end."""
        return self._ipc(f"front-{index}")

    def engine_input(self, index: int) -> str:
        """vLLM's request socket of a front end (it binds, engines connect)."""
        return self._ipc(f"in-{index}")

    def engine_output(self, index: int) -> str:
        """vLLM's token socket of a front end (it binds, engines connect)."""
        return self._ipc(f"out-{index}")

    def instance(self, instance: InstanceId) -> str:
        """Mailbox of an instance."""
        return self._ipc(f"{instance}")

    def data(self, instance: InstanceId, rank: int) -> Path:
        """Unix socket on which worker `rank` of an instance serves KV blocks."""
        return self.run_dir / f"kv-{instance}-{rank}"

    @property
    def all_front_ends(self) -> tuple[str, ...]:
        return tuple(self.front_end(index) for index in range(self.front_ends))

    def _ipc(self, name: str) -> str:
        path = str(self.run_dir / name)
        assert len(path.encode()) <= _MAX_SOCKET_PATH, f"socket path too long: {path}"
        return f"ipc://{path}"
