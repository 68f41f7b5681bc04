"""Which run is being recorded: the same for all front ends, as a file in the private folder of the server.

A front end that is restarted goes on with that run.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from llumnix.whole_file import write_whole


class RunInForce(msgspec.Struct, frozen=True):
    folder: str = ""
    """Empty: none."""
    began_at_s: float = 0.0
    """Since 1970."""
    began_s: float = 0.0
    """The same moment by the monotonic clock of the front ends' machine, which nobody sets: all of a run is counted
    from it."""
    unit_tokens: int = 0
    """Of prompts, that have a name each (`RunWriter`)."""


class RunFile:
    def __init__(self, run_dir: str) -> None:
        self._path = Path(run_dir) / "recorded-run"

    def begin(self, fresh: RunInForce) -> RunInForce:
        """`fresh`, unless another front end was quicker. Returns what holds. Nothing is written where something does:
        a front end that is restarted must not die of a full disk."""
        if not self._path.exists():
            mine = self._path.with_suffix(f".{os.getpid()}")
            mine.write_bytes(msgspec.json.encode(fresh))
            with contextlib.suppress(FileExistsError):
                os.link(mine, self._path)
            mine.unlink()
        return self.read()

    def read(self) -> RunInForce:
        return msgspec.json.decode(self._path.read_bytes(), type=RunInForce)

    def write(self, run: RunInForce) -> None:
        write_whole(self._path, msgspec.json.encode(run))
