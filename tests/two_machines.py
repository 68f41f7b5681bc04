"""Two "machines" with a Ray node each: this one, and a network namespace with an address of its own behind a link.

Needs the right to make network namespaces (root, or CAP_NET_ADMIN and CAP_SYS_ADMIN) and iproute2.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""Environment with which Ray's processes let each other in."""

_FAKE_ENGINE = Path(__file__).parent / "cluster"
OURS, THEIRS = "10.213.77.1", "10.213.77.2"
_START_S = 60.0
_STARTED = "Ray runtime started"


def why_not_possible() -> str | None:
    """None where namespaces can be made; else what the machine forbids."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    name = f"llumnix-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"no network namespace can be made here: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return None


class TwoMachines:
    """Ray's head, with one CPU, here; a node with one CPU in the namespace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"llumnix-{os.getpid()}"
        self._link = f"llx{os.getpid() % 100_000}"
        self._ray_dir = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: Ray's sockets are below it
        self._nodes: list[subprocess.Popen[bytes]] = []
        try:
            self._join()
            self.address = f"{OURS}:{free_port(OURS)}"
            port = self.address.rpartition(":")[2]
            self._start_ray(
                "here", "--head", f"--port={port}", f"--node-ip-address={OURS}", "--include-dashboard=false"
            )
            self.start_the_other()
        except BaseException:
            self.close()
            raise

    def start_the_other(self) -> None:
        self._start_ray("there", f"--address={self.address}", f"--node-ip-address={THEIRS}", prefix=self.inside)

    @property
    def inside(self) -> list[str]:
        """Words that run a command on the other machine."""
        return ["ip", "netns", "exec", self.name]

    def cut(self) -> None:
        _ip("link", "set", self._link, "down")

    def mend(self) -> None:
        _ip("link", "set", self._link, "up")

    def power_off(self) -> None:
        """Every process on the other machine ends at once."""
        for pid in self._pids():
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        for pid in self._pids():
            os.kill(pid, signal.SIGKILL)
        for node in self._nodes:
            end_session(node)
        subprocess.run(["ip", "link", "del", self._link], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, check=False)
        shutil.rmtree(self._ray_dir, ignore_errors=True)

    def _pids(self) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        return [int(pid) for pid in listed.stdout.split()]

    def _join(self) -> None:
        _ip("netns", "add", self.name)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("addr", "add", f"{OURS}/30", "dev", self._link)
        _ip("link", "set", self._link, "up")
        for words in (["addr", "add", f"{THEIRS}/30", "dev", "eth0"], ["link", "set", "eth0", "up"]):
            _ip("-n", self.name, *words)
        _ip("-n", self.name, "link", "set", "lo", "up")

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
        command += ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
        log = self.folder / f"ray-{name}-{len(self._nodes)}.log"
        with log.open("wb") as output:
            node = subprocess.Popen(
                [*prefix, *command, *flags], env=environment, stdout=output, stderr=output, process_group=0
            )
        self._nodes.append(node)
        deadline_s = time.monotonic() + _START_S
        while _STARTED not in log.read_text():
            assert node.poll() is None, f"no Ray node: {log.read_text()}"
            assert time.monotonic() < deadline_s, f"no Ray node yet: {log.read_text()}"
            time.sleep(0.05)


def end_session(leader: subprocess.Popen[bytes]) -> None:
    """Ends a Ray node: it stops what it started when it is asked to."""
    leader.terminate()
    try:
        leader.wait(10)
    except subprocess.TimeoutExpired:
        leader.kill()
        leader.wait()


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
