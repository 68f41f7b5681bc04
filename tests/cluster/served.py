"""A `llumnix serve` with an engine that is none (fake_boot.py), started and watched by a test."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import psutil

WAIT_S = 60.0  # on a machine that is busy with other things; usually it is a fraction of a second


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Serve:
    """A running `llumnix serve` with its console in `lines`."""

    def __init__(self, folder: Path, *flags: str, console: Path | None = None, **extra_environment: str) -> None:
        self.port = free_port()
        self.folder = folder
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        environment = os.environ | {
            "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
            "TMPDIR": str(folder),
            "PYTHONUNBUFFERED": "1",
        }
        environment.pop("XDG_RUNTIME_DIR", None)
        environment |= extra_environment
        command = [sys.executable, "-m", "llumnix", "serve", str(model), "--engine-module", "fake_boot"]
        with nullcontext(subprocess.PIPE) if console is None else console.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), *flags],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(line.rstrip())

    def wait_for_line(self, pattern: str) -> str:
        def found() -> str | None:
            line = next((line for line in self.lines if re.search(pattern, line)), None)
            assert line or self._reader.is_alive(), f"it ended without saying {pattern!r}: {self.lines}"
            return line

        try:
            line: str = wait_for(found, pattern)
        except AssertionError as error:
            raise AssertionError(f"{error}; it said: {self.lines}") from None
        return line

    def wait_until_serving(self) -> None:
        self.wait_for_line("^serving")

    def get(self, path: str, timeout: float = WAIT_S) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=timeout)

    def instances(self) -> dict[str, int]:
        """Pids by id, as the front end heard of them."""
        pids: dict[str, int] = ast.literal_eval(self.get("/instances").text)
        return pids

    def nodes(self) -> dict[str, str]:
        """Names of their machines by id, as the front end heard of them."""
        names: dict[str, str] = ast.literal_eval(self.get("/nodes").text)
        return names

    def descendants(self, command: str = "") -> list[psutil.Process]:
        """Those with these words in their command lines."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if command in " ".join(child.cmdline())]

    def descendant(self, command: str) -> psutil.Process:
        return self.descendants(command)[0]

    def end(self) -> int:
        code = self.process.wait(WAIT_S)
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline_s = time.monotonic() + WAIT_S
    while not (result := condition()):
        assert time.monotonic() < deadline_s, f"waited in vain for: {what}"
        time.sleep(0.02)
    return result


def is_alive(process: psutil.Process) -> bool:
    """A zombie is not: whoever adopted it may be slow to take its exit status."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
