"""A `llumnix serve` of the tiny model that must leave nothing behind when it stops."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from frame.server import ServerProcess, wait_for
from llumnix.recording import RECORD, differences

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 45.0
QUIET_TIMEOUT_S = 30.0

USUAL_FLAGS = (
    *("--no-migration", "--max-num-batched-tokens", "512"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
)
"""Requests move only when told to, long prompts are cut into chunks, tools can be called."""

_CACHES = "torchinductor_"  # meant to stay
_TAIL_LINES = 40
_LINE_CHARACTERS = 200
_TROUBLE = re.compile(r"Traceback \(most recent call last\)|IllegalEvent|AssertionError|CRITICAL|cannot have meant")


class Server(ServerProcess):
    """Made ready by the constructor, if it `waits` for that. `folder` gets the console's output and all logs."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        instances: int = 2,
        environment: Mapping[str, str] | None = None,
        api_key: str | None = None,
        recorded: bool = True,
        waits: bool = True,
    ) -> None:
        self.folder = folder
        self._instances = instances
        self._temporary, self._recordings = folder / "tmp", folder / "recordings"
        self._temporary.mkdir()
        self._recordings.mkdir()
        self._recorded = recorded
        own = {"TMPDIR": str(self._temporary)} | ({RECORD: str(self._recordings)} if recorded else {})
        command = [sys.executable, "-m", "llumnix", "serve", "--log-dir", str(folder), "--instances", str(instances)]
        more = ("--disable-uvicorn-access-log", *(("--api-key", api_key) if api_key else ()))
        super().__init__(command, [*flags, *more], folder / "console.txt", {**os.environ, **own, **(environment or {})})
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=self.url, timeout=60.0, headers=headers)
        if waits:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Raises AssertionError if it is not in time; then nothing of it is left."""
        try:
            self.wait_until_healthy(START_TIMEOUT_S)
            wait_for(lambda: "serving" in self.console(), "the word that it serves", START_TIMEOUT_S)
            # An instance is ready a moment before the front end takes it in.
            wait_for(lambda: len(self.instances()) >= self._instances, "all instances", START_TIMEOUT_S)
        except BaseException:
            self.kill()
            print(self.logs())
            raise

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

    def counted(self, sample: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        families = text_string_to_metric_families(self.metrics())
        samples = (each for family in families for each in family.samples if each.name == sample)
        return sum(each.value for each in samples if labels.items() <= each.labels.items())

    def drafted(self, what: str = "draft") -> int:
        """Tokens that were guessed since the start, or, of `what` = "accepted", those that proved right."""
        return int(self.counted(f"vllm:spec_decode_num_{what}_tokens_total"))

    def wait_until_quiet(self, timeout_s: float = QUIET_TIMEOUT_S) -> None:
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

    def logs(self) -> str:
        """The end of every log, for the report of a failed test."""
        lines: list[str] = []
        for path in self._log_files():
            lines += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]]
        return "\n".join(line[:_LINE_CHARACTERS] for line in lines)

    def trouble(self) -> list[str]:
        """Lines of the logs that no healthy server writes."""
        return [line for line in self._lines() if _TROUBLE.search(line)]

    def _lines(self) -> list[str]:
        """Of all logs."""
        return [
            f"{path.name}: {line}"
            for path in self._log_files()
            for line in path.read_text(errors="replace").splitlines()
        ]

    def _log_files(self) -> list[Path]:
        return sorted([*self.folder.glob("*.txt"), *self.folder.glob("*.log")])

    def descendant(self, name: str) -> psutil.Process:
        """The process that calls itself `llumnix NAME`. Raises AssertionError if there is none (just now)."""
        for process in self.descendants(f"llumnix {name}"):
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                if " ".join(process.cmdline()).strip() == f"llumnix {name}":
                    return process
        raise AssertionError(f"no process {name}")

    def signal_instance(self, instance: str, number: signal.Signals) -> None:
        os.kill(self.instance(instance)["pid"], number)

    def stop(self) -> None:
        """SIGTERM; everything must be gone after it, with exit code 0, and what the scheduler and the llumlets did must
        come out the same when they hear it again."""
        children = self.descendants()
        shared = {path for child in children for path in shared_memory(child.pid)}
        self.process.terminate()
        try:
            code = self.end(STOP_TIMEOUT_S)
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
        assert not (late := [each for each in self._lines() if "running after grace period" in each]), late
        recordings = sorted(self._recordings.iterdir())
        assert any(path.name.startswith("scheduler") for path in recordings) == self._recorded
        for path in recordings:
            assert not (found := differences(path)), f"{path.name}: {found[:3]}"

    def kill(self) -> None:
        super().kill()
        self._http.close()


def shared_memory(pid: int) -> set[Path]:
    """Files of it that a process has mapped."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text()
    except OSError:  # it ended meanwhile
        return set()
    return {Path(name) for name in re.findall(r"/dev/shm/\S+$", maps, re.MULTILINE)}
