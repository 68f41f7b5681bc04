"""A network namespace behind a link with a network of its own: the other "machine" of tests.

Needs the right to make network namespaces (root, or CAP_NET_ADMIN and CAP_SYS_ADMIN) and iproute2.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

_NAME = "llumnix-"
"""Followed by the pid of the process that made the namespace."""
_NETWORKS = ipaddress.ip_network("10.213.0.0/16")
"""Ours to choose from; each link takes four addresses."""
_LOCK = Path("/run/llumnix-addresses.lock")
"""Where `ip netns` keeps its own, so it is the same for all runs on the machine."""


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


class LinkedNamespace:
    """Has the address `theirs`; reaches this side of the link at `ours`. What an ended run left behind goes first."""

    def __init__(self, owner_pid: int | None = None) -> None:
        pid = owner_pid or os.getpid()
        self.name = f"{_NAME}{pid}"
        self._link = f"llx{pid}"
        remove_leftovers()
        try:
            with _alone():
                self.ours, self.theirs = _free_pair()
                self._join()
        except BaseException:
            self.close()
            raise

    @property
    def inside(self) -> list[str]:
        """Words that run a command in it."""
        return ["ip", "netns", "exec", self.name]

    def cut(self) -> None:
        _ip("link", "set", self._link, "down")

    def mend(self) -> None:
        _ip("link", "set", self._link, "up")

    def end_all(self) -> None:
        """Every process in it ends at once."""
        _end_all(self.name)

    def close(self) -> None:
        _remove(self.name)

    def _join(self) -> None:
        _ip("netns", "add", self.name)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("addr", "add", f"{self.ours}/30", "dev", self._link)
        _ip("link", "set", self._link, "up")
        for words in (["addr", "add", f"{self.theirs}/30", "dev", "eth0"], ["link", "set", "eth0", "up"]):
            _ip("-n", self.name, *words)
        _ip("-n", self.name, "link", "set", "lo", "up")


def remove_leftovers() -> None:
    """A run that was killed could not remove its own."""
    for name in namespaces():
        if not psutil.pid_exists(int(name.removeprefix(_NAME))):
            _remove(name)


def namespaces() -> list[str]:
    """Of runs of these tests, this one's or another's."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    names = [line.split()[0] for line in listed.splitlines()]
    return [name for name in names if name.startswith(_NAME) and name.removeprefix(_NAME).isdigit()]


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """No other run chooses addresses meanwhile: until a link has them they are free for all."""
    with _LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _free_pair() -> tuple[str, str]:
    """This end of a link and the other: of the first four addresses of which this machine has none."""
    taken = [ipaddress.ip_address(address) for address in _own_addresses()]
    for network in _NETWORKS.subnets(new_prefix=30):
        if not any(address in network for address in taken):
            ours, theirs = network.hosts()
            return str(ours), str(theirs)
    raise AssertionError(f"every address of {_NETWORKS} is taken")


def _own_addresses() -> Iterator[str]:
    for addresses in psutil.net_if_addrs().values():
        yield from (one.address for one in addresses if one.family == socket.AF_INET)


def _remove(name: str) -> None:
    """With its end of the link goes ours."""
    _end_all(name)
    subprocess.run(["ip", "link", "del", f"llx{name.removeprefix(_NAME)}"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _end_all(name: str) -> None:
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
    for pid in listed.stdout.split():
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.kill(int(pid), signal.SIGKILL)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
