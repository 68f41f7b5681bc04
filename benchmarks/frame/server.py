"""Servers as processes: Llumnix, and vLLM's own with the same engine flags; started, waited for, ended."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

from llumnix.client import AdminClient
from llumnix.cluster.environment import runs_on_cpu, with_kernels

START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 60.0
WAIT_S = 60.0
"""On a machine that is busy with other things; usually it is a fraction of a second."""

PORTS = 20_000, 32_000
"""Above those that Ray deals out to its workers, below those of Linux's usual `ip_local_port_range`."""

TRIED_PORTS = 100

_POLL_S = 0.02
_START_POLL_S = 0.1  # a start takes seconds, in which it needs the cores
_LAST_LINES = 30

Result = TypeVar("Result")


def free_port(host: str = "127.0.0.1") -> int:
    """One that nobody listens on, and none of those that the system deals out by itself: until the server listens, a
    connection of somebody else would get such a one. Raises AssertionError where nearly all are taken."""
    for port in random.sample(range(*PORTS), TRIED_PORTS):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return port
    raise AssertionError(f"{TRIED_PORTS} ports were tried, and all are taken")


def wait_for(
    condition: Callable[[], Result | None], what: str, timeout_s: float = WAIT_S, poll_s: float = _POLL_S
) -> Result:
    """The first true value of `condition`. Raises AssertionError after the deadline."""
    deadline_s = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline_s, f"waited {timeout_s:g} s in vain for: {what}"
        time.sleep(poll_s)
    return result


class ServerProcess:
    """A command with `--port` and flags behind it, running; what it says goes to the file `console`."""

    def __init__(
        self, command: Sequence[str], flags: Sequence[str], console: Path, environment: Mapping[str, str]
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._console = console
        self._began_s = time.monotonic()
        self.ready_s = float("nan")
        """From the start of the process until `GET /health` said 200."""
        words = [*command, "--port", str(self.port), *flags]
        self.words = " ".join(words)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the server goes with its benchmark
        with console.open("wb") as output:
            self.process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=dict(environment))

    def wait_until_healthy(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Raises AssertionError if it ends, or is not in time."""

        def healthy() -> bool:
            assert self.process.poll() is None, f"the server ended: {self.last_lines()}"
            with contextlib.suppress(httpx.TransportError):
                return client.get("/health").status_code == httpx.codes.OK
            return False

        with httpx.Client(base_url=self.url, timeout=5) as client:
            wait_for(healthy, "a server that is ready", timeout_s, _START_POLL_S)
        self.ready_s = time.monotonic() - self._began_s

    def console(self) -> str:
        return self._console.read_text(errors="replace")

    def last_lines(self) -> str:
        return "\n".join(self.console().splitlines()[-_LAST_LINES:])

    def processes(self) -> list[psutil.Process]:
        """The server's process and all its descendants."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def descendants(self, words: str = "") -> list[psutil.Process]:
        """Those with these words in their command lines."""
        found = []
        for process in self.processes()[1:]:
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                found += [process] if words in " ".join(process.cmdline()) else []
        return found

    def end(self, timeout_s: float = WAIT_S) -> int:
        """Waits for its end; returns its exit code. Raises subprocess.TimeoutExpired."""
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """For a server that is no longer of use."""
        if self.process.poll() is None:
            for process in reversed(self.processes()):
                with contextlib.suppress(psutil.Error):
                    process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM; SIGKILL to all of it if that is not heard in time."""
        self.process.terminate()
        try:
            self.end(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def llumnix_server(engine_flags: Sequence[str], *flags: str, instances: int) -> Iterator[ServerProcess]:
    """`llumnix serve`, all of whose instances run; ended at the end. Raises SystemExit with its last words."""
    command = [sys.executable, "-m", "llumnix", "serve", *engine_flags, "--verbose", "--instances", str(instances)]
    with _running(command, flags) as server:
        wait_for_instances(server.url, instances)
        yield server


@contextmanager
def vllm_server(engine_flags: Sequence[str], *flags: str) -> Iterator[ServerProcess]:
    """`vllm serve` under the conditions that Llumnix makes; ended at the end. Raises SystemExit as above."""
    with _running(vllm_command(engine_flags), flags) as server:
        yield server


def vllm_command(engine_flags: Sequence[str]) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("vllm_serve.py")), *engine_flags]


def wait_for_instances(url: str, count: int) -> None:
    """Until so many run: a server answers as soon as its first one does."""
    client = AdminClient(url)
    try:
        wait_for(lambda: len(running(client)) >= count, f"{count} instances", START_TIMEOUT_S)
    finally:
        client.close()


def running(client: AdminClient) -> set[str]:
    """Ids of the instances that run."""
    return {row.id for row in client.instances() if row.state == "running"}


@contextmanager
def _running(command: Sequence[str], flags: Sequence[str]) -> Iterator[ServerProcess]:
    with started(command, flags) as server:
        ready(server)
        yield server


@contextmanager
def started(command: Sequence[str], flags: Sequence[str]) -> Iterator[ServerProcess]:
    """A server of this command, not yet ready; ended at the end."""
    with tempfile.TemporaryDirectory(prefix="server-") as folder:
        words = [*command, "--host", "127.0.0.1"]
        server = ServerProcess(words, flags, Path(folder) / "console.txt", _like_ours())
        try:
            yield server
        finally:
            server.stop()


def ready(server: ServerProcess) -> None:
    """Waits until it is. Raises SystemExit with its last words."""
    try:
        server.wait_until_healthy()
    except AssertionError as error:
        raise SystemExit(f"{server.words}: {error}") from error


def _like_ours() -> dict[str, str]:
    """The environment, with what `llumnix serve` sets for its own processes, so that both run under the same
    conditions."""
    ours = {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if runs_on_cpu():
        ours |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
        ours |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return with_kernels(ours | os.environ)
