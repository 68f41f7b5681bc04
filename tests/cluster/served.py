"""A `llumnix serve` with an engine that is none (fake_boot.py), started and watched by a test."""

from __future__ import annotations

import ast
import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import psutil
from fake_boot import shared_memory_name
from frame.server import WAIT_S, ServerProcess, wait_for


class Serve(ServerProcess):
    """A running `llumnix serve` with its console in `lines`."""

    def __init__(
        self, folder: Path, *flags: str, console: Path | None = None, more_environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        self._id = secrets.token_hex(4)
        environment = os.environ | {
            "LLUMNIX_TEST_SERVER": self._id,
            "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
            "TMPDIR": str(folder),
            "PYTHONUNBUFFERED": "1",
        }
        environment.pop("XDG_RUNTIME_DIR", None)
        command = [sys.executable, "-m", "llumnix", "serve", str(model), "--engine-module", "fake_boot"]
        # Beside the folder: nothing but the model is to be in it in the end.
        console = console or folder.with_name(f"{folder.name}-console.txt")
        super().__init__(command, flags, console, {**environment, **(more_environment or {})})

    @property
    def lines(self) -> list[str]:
        """Those that are whole."""
        return self.console().rpartition("\n")[0].splitlines()

    def wait_for_line(self, pattern: str) -> str:
        def found() -> str | None:
            ended = self.process.poll() is not None
            line = next((line for line in self.lines if re.search(pattern, line)), None)
            assert line or not ended, f"it ended without saying {pattern!r}: {self.lines}"
            return line

        try:
            return wait_for(found, pattern)
        except AssertionError as error:
            raise AssertionError(f"{error}; it said: {self.lines}") from None

    def wait_until_serving(self) -> None:
        self.wait_for_line("^serving")

    def get(self, path: str, timeout: float = WAIT_S) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=timeout)

    def instances(self) -> dict[str, int]:
        """Pids by id, as the front end heard of them."""
        pids: dict[str, int] = ast.literal_eval(self.get("/instances").text)
        return pids

    def shared_memory(self, pid: int) -> Path:
        """Of the instance that has, or had, this pid."""
        return Path("/dev/shm", shared_memory_name(self._id, pid))

    def nodes(self) -> dict[str, str]:
        """Names of their machines by id, as the front end heard of them."""
        names: dict[str, str] = ast.literal_eval(self.get("/nodes").text)
        return names

    def descendant(self, command: str) -> psutil.Process:
        return self.descendants(command)[0]


def is_alive(process: psutil.Process) -> bool:
    """A zombie is not: whoever adopted it may be slow to take its exit status."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
