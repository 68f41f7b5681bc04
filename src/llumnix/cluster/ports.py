"""For a server that spans machines: the launcher's address, and ports that stay ours while processes come and go."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from llumnix import hosts
from llumnix.errors import UsageError, in_a_clause
from llumnix.hosts import why_unusable

LOOPBACK = "127.0.0.1"

# Nobody's (RFC 5737, RFC 3849): only the routes to them are asked for, nothing is sent.
_FAR_AWAY = ("198.51.100.1", "2001:db8::1")


def reserve_ports(host: str, count: int) -> list[socket.socket]:
    """Bound sockets that never listen: the system gives their ports to nobody else, but ZeroMQ can listen on them.

    ZeroMQ and these sockets set SO_REUSEADDR, with which Linux lets both be bound while at most one listens. So a
    process that is restarted finds its port free. Raises UsageError when `host` is not an address of this machine.
    """
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.socket(hosts.family(host), socket.SOCK_STREAM)
            held.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, 0))
    except OSError as error:
        for sock in held:
            sock.close()
        raise UsageError(f"{host} is not an address of this machine: {in_a_clause(error)}.") from error
    return held


def own_address(ray_address: str) -> str:
    """Where the machines of the Ray cluster reach this one: its own address on the way to Ray's head, or if that is on
    this machine, on the way to anywhere. Raises UsageError when there is no such way, but other machines."""
    if not ray_address:
        return LOOPBACK  # a cluster made on the spot is this machine alone
    for towards in (_head(ray_address), *_FAR_AWAY):
        for mine in _own_ends_of(towards):
            if not ipaddress.ip_address(mine).is_loopback:
                return mine
    if not _has_network():
        return LOOPBACK
    raise UsageError(
        "Nothing says at which of its addresses the Ray cluster's other machines reach this one: name it with "
        f"--cluster-address ({LOOPBACK} if there are none)."
    )


def _head(ray_address: str) -> str:
    """Host of Ray's head; with `auto` that of the cluster that Ray last joined here, as Ray itself has it. Empty if
    nothing tells."""
    if ray_address == "auto":
        ray_address = os.environ.get("RAY_ADDRESS") or "auto"
    if ray_address == "auto":
        folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
        try:
            ray_address = Path(folder, "ray", "ray_current_cluster").read_text().strip()
        except (OSError, UnicodeError):
            return ""
    try:
        return hosts.split(ray_address)[0]
    except ValueError:
        return ""


def numeric(host: str) -> str:
    """The number of a name, for ZeroMQ binds to no name. Raises UsageError when nobody knows the name."""
    try:
        found: str = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]  # type: ignore[assignment]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--cluster-address {host} is not known: {why_unusable(error)}.") from error
    return found


def _own_ends_of(host: str) -> Iterator[str]:
    """This machine's addresses on the ways to a host, by any of its numbers."""
    try:
        found = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM) if host else []
    except (OSError, UnicodeError):
        return
    for family, kind, _, _, where in found:
        try:
            with socket.socket(family, kind) as probe:
                probe.connect(where)
                yield probe.getsockname()[0]
        except OSError:  # no way there
            continue


def _has_network() -> bool:
    """Whether this machine has an address that is not its own alone."""
    addresses = [each for interface in psutil.net_if_addrs().values() for each in interface]
    numbers = [each.address.partition("%")[0] for each in addresses if each.family in (socket.AF_INET, socket.AF_INET6)]
    return any(not (number.is_loopback or number.is_link_local) for number in map(ipaddress.ip_address, numbers))


def listen_for_admin(host: str, port: int) -> socket.socket | None:
    """None for port 0: the admin routes have none of their own. On `::`, as the HTTP port, it is there for IPv4, too,
    if that is how the system has it. Raises UsageError."""
    if port == 0:
        return None
    sock = socket.socket(hosts.family(host), socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen()
        return sock
    except OSError as error:
        sock.close()
        raise UsageError(f"The admin port {port} cannot be opened: {in_a_clause(error)}.") from error
