"""The server's state (control/server_state.py) as a file in the server's private folder, with a lock beside it.

All front ends are on one machine, and a file is the simplest thing that all can reach, that none of them owns, and that
lives as long as the server: whoever dies while it holds the lock loses it, and whoever is restarted reads where the
others are. docs/understand/adr/0005-server-state.md tells what else was thought of.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path
from time import monotonic

import msgspec
from vllm.exceptions import GracefulHTTPError

from llumnix.control.server_state import ServerState
from llumnix.whole_file import write_whole

_LOCK_TIMEOUT_S = 60.0
_LOCK_PAUSE_S = 0.01


class StateFile:
    def __init__(self, run_dir: str) -> None:
        self._path = Path(run_dir) / "state"
        self._decoder = msgspec.msgpack.Decoder(ServerState)

    def read(self) -> ServerState:
        """As the last change left it; never one that is half written."""
        try:
            return self._decoder.decode(self._path.read_bytes())
        except FileNotFoundError:
            return ServerState()

    @contextlib.asynccontextmanager
    async def changing(self) -> AsyncIterator[Callable[[ServerState], None]]:
        """Nobody else changes it meanwhile. Gives what writes it. Raises an error that becomes
        a 503 when somebody else takes too long."""
        lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline_s = monotonic() + _LOCK_TIMEOUT_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if monotonic() > deadline_s:
                        why = "Another change of the server's state has not ended yet; try again later."
                        raise GracefulHTTPError(why, HTTPStatus.SERVICE_UNAVAILABLE) from None
                await asyncio.sleep(_LOCK_PAUSE_S)
            yield self._write
        finally:
            os.close(lock)

    def _write(self, state: ServerState) -> None:
        write_whole(self._path, msgspec.msgpack.encode(state))
