"""Two "machines" with a Ray node each: this one, and a network namespace with an address of its own behind a link."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from frame.server import free_port

from linked_namespace import LinkedNamespace

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""Environment with which Ray's processes let each other in."""

_FAKE_ENGINE = Path(__file__).parent / "cluster"
_START_S = 60.0
_STARTED = "Ray runtime started"


class TwoMachines:
    """Ray's head, with one CPU, here; a node with one CPU in the namespace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.other = LinkedNamespace()
        self._ray_dir = ray_folder()
        self._nodes: list[subprocess.Popen[bytes]] = []
        self.address = f"{self.other.ours}:{free_port(self.other.ours)}"
        try:
            self._start_ray("here", "--head", f"--port={self.address.rpartition(':')[2]}", "--include-dashboard=false")
            self.start_the_other()
        except BaseException:
            self.close()
            raise

    def start_the_other(self) -> None:
        self._start_ray("there", f"--address={self.address}", prefix=self.other.inside)

    def close(self) -> None:
        self.other.end_all()
        for node in self._nodes:
            end_session(node)
        self.other.close()
        shutil.rmtree(self._ray_dir, ignore_errors=True)

    def _start_ray(self, name: str, *flags: str, prefix: Sequence[str] = ()) -> None:
        environment = (
            os.environ
            | TOKEN
            | {
                "TMPDIR": str(self.folder),
                "PYTHONPATH": f"{_FAKE_ENGINE}:{os.environ.get('PYTHONPATH', '')}",
                "RAY_TMPDIR": self._ray_dir,
                "RAY_USAGE_STATS_ENABLED": "0",
            }
        )
        environment.pop("XDG_RUNTIME_DIR", None)
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-name={name}"]
        command += [f"--node-ip-address={self.other.theirs if prefix else self.other.ours}", "--num-cpus=1"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats"]
        log = self.folder / f"ray-{name}-{len(self._nodes)}.log"
        with log.open("wb") as output:
            node = subprocess.Popen([*prefix, *command, *flags], env=environment, stdout=output, stderr=output)
        self._nodes.append(node)
        deadline_s = time.monotonic() + _START_S
        while _STARTED not in log.read_text():
            assert node.poll() is None, f"no Ray node: {log.read_text()}"
            assert time.monotonic() < deadline_s, f"no Ray node yet: {log.read_text()}"
            time.sleep(0.05)


def ray_folder() -> str:
    """A new one, with a short path: Ray's sockets are below it. What runs left that were killed goes first."""
    for left in Path("/tmp").glob("ray-*-*"):
        pid = left.name.split("-")[1]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"ray-{os.getpid()}-", dir="/tmp")


def end_session(leader: subprocess.Popen[bytes]) -> None:
    """Ends a Ray node: it stops what it started when it is asked to."""
    leader.terminate()
    try:
        leader.wait(10)
    except subprocess.TimeoutExpired:
        leader.kill()
        leader.wait()
