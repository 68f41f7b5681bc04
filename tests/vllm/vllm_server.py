"""A real `llumnix serve` with real vLLM engines and the tiny model, started and ended by a test."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from llumnix.recording import RECORD, differences

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 45.0
WAIT_S = 30.0

USUAL_FLAGS = (
    *("--no-migration", "--max-num-batched-tokens", "512"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
)
"""Requests move only when told to, long prompts are cut into chunks, tools can be called."""

Result = TypeVar("Result")

_CACHES = "torchinductor_"  # meant to stay
_TAIL_LINES = 40
_LINE_CHARACTERS = 200
_TROUBLE = re.compile(r"Traceback \(most recent call last\)|IllegalEvent|AssertionError|CRITICAL|cannot have meant")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], Result | None], what: str, timeout_s: float = WAIT_S) -> Result:
    """The first true value of `condition`. Fails after the deadline."""
    deadline_s = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline_s, f"waited {timeout_s:g} s in vain for: {what}"
        time.sleep(0.05)
    return result


class Server:
    """Made ready by the constructor. `folder` gets the console's output and all logs."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        instances: int = 2,
        environment: dict[str, str] | None = None,
        api_key: str | None = None,
        recorded: bool = True,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self._temporary = folder / "tmp"
        self._temporary.mkdir()
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=self.url, timeout=60.0, headers=headers)
        command = [sys.executable, "-m", "llumnix", "serve", "--port", str(self.port), "--log-dir", str(folder)]
        words = [*command, "--instances", str(instances), "--disable-uvicorn-access-log", *flags]
        words += ["--api-key", api_key] if api_key else []
        self._recorded = recorded
        self._recordings = folder / "recordings"
        self._recordings.mkdir()
        own = {"TMPDIR": str(self._temporary)} | ({RECORD: str(self._recordings)} if recorded else {})
        variables = {**os.environ, **own, **(environment or {})}
        with (folder / "console.txt").open("wb") as console:
            self.process = subprocess.Popen(words, stdout=console, stderr=subprocess.STDOUT, env=variables)
        try:
            self._wait_until_ready(instances)
        except BaseException:
            self.kill()
            print(self.logs())
            raise

    def _wait_until_ready(self, instances: int) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, f"the server ended: {self.console()}"
            try:
                if self._http.get("/health").status_code != httpx.codes.OK:
                    return False
            except httpx.TransportError:
                return False
            # An instance is ready a moment before the front end takes it in.
            return "serving" in self.console() and len(self.instances()) >= instances

        wait_for(ready, "a server that is ready", START_TIMEOUT_S)

    # -- talk

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self._http.get(path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self._http.post(path, **options)

    def instances(self, *states: str) -> list[dict[str, Any]]:
        """The rows of these states (default: running), by id."""
        rows = self.get("/llumnix/v1/instances").json()["instances"]
        return sorted((row for row in rows if row["state"] in (states or ("running",))), key=lambda row: row["id"])

    def instance(self, instance: str) -> dict[str, Any]:
        rows: list[dict[str, Any]] = self.get("/llumnix/v1/instances").json()["instances"]
        return next(row for row in rows if row["id"] == instance)

    def requests(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.get("/llumnix/v1/requests").json()["requests"]
        return rows

    def migrations(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.get("/llumnix/v1/migrations?limit=100000").json()["migrations"]
        return rows

    def metrics(self) -> str:
        return self.get("/metrics").text

    def wait_until_quiet(self, timeout_s: float = WAIT_S) -> None:
        """No request anywhere, and every block of every running instance is free."""

        def quiet() -> bool:
            rows = self.instances("running", "draining")
            busy = [
                row for row in rows if row["running"] or row["waiting"] or row["free_blocks"] != row["total_blocks"]
            ]
            self._left = f"requests {self.requests()}, instances {busy}" if busy or self.requests() else ""
            return not self._left

        try:
            wait_for(quiet, "an empty cluster", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; left: {self._left}") from None

    # -- the processes

    def console(self) -> str:
        return (self.folder / "console.txt").read_text(errors="replace")

    def logs(self) -> str:
        """The end of every log, for the report of a failed test."""
        lines: list[str] = []
        for path in self._log_files():
            lines += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]]
        return "\n".join(line[:_LINE_CHARACTERS] for line in lines)

    def trouble(self) -> list[str]:
        """Lines of the logs that no healthy server writes."""
        return [
            f"{path.name}: {line}"
            for path in self._log_files()
            for line in path.read_text(errors="replace").splitlines()
            if _TROUBLE.search(line)
        ]

    def _log_files(self) -> list[Path]:
        return sorted([*self.folder.glob("*.txt"), *self.folder.glob("*.log")])

    def descendant(self, name: str) -> psutil.Process:
        """The process that calls itself `llumnix NAME`."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if process.cmdline() and " ".join(process.cmdline()).strip() == f"llumnix {name}":
                return process
        raise AssertionError(f"no process {name}")

    def signal_instance(self, instance: str, number: signal.Signals) -> None:
        os.kill(self.instance(instance)["pid"], number)

    def stop(self) -> None:
        """SIGTERM; everything must be gone after it, with exit code 0, and what the scheduler and the llumlets did must
        come out the same when they hear it again."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        shared = {path for child in children for path in _shared_memory(child.pid)}
        self.process.terminate()
        try:
            code = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still there {STOP_TIMEOUT_S:g} s after SIGTERM\n{self.logs()}") from None
        finally:
            self._http.close()
        assert code == 0, f"exit code {code}: {self.console()}"
        alive = [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        assert not alive, f"left running: {alive}"
        left = [path.name for path in self._temporary.iterdir() if not path.name.startswith(_CACHES)]
        assert not left, f"left in the temporary folder: {left}"
        assert not (files := [path for path in shared if path.exists()]), f"shared memory that is left: {files}"
        recordings = sorted(self._recordings.iterdir())
        assert any(path.name.startswith("scheduler") for path in recordings) == self._recorded
        for path in recordings:
            assert not (found := differences(path)), f"{path.name}: {found[:3]}"

    def kill(self) -> None:
        """For a server that is no longer of use: its children end with it."""
        self.process.kill()
        self.process.wait()
        self._http.close()


def _shared_memory(pid: int) -> set[Path]:
    """Files of it that a process has mapped."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text()
    except OSError:  # it ended meanwhile
        return set()
    return {Path(name) for name in re.findall(r"/dev/shm/\S+$", maps, re.MULTILINE)}
