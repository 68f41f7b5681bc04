"""For a server that spans machines: the launcher's address, and ports that stay ours while processes come and go."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

from llumnix.errors import UsageError

_FAR_AWAY = "198.51.100.1"  # nobody's (RFC 5737): only the route to it is asked for, nothing is sent
LOOPBACK = "127.0.0.1"


def reserve_ports(host: str, count: int) -> list[socket.socket]:
    """Bound sockets that never listen: the system gives their ports to nobody else, but ZeroMQ can listen on them.

    ZeroMQ and these sockets set SO_REUSEADDR, with which Linux lets both be bound while at most one listens. So a
    process that is restarted finds its port free. Raises UsageError when `host` is not an address of this machine.
    """
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
            held.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, 0))
    except OSError as error:
        for sock in held:
            sock.close()
        raise UsageError(f"{host} is not an address of this machine: {error.strerror or error}.") from error
    return held


def own_address(ray_address: str) -> str:
    """Where the machines of the Ray cluster reach this one: its own address on the way to Ray's head."""
    if not ray_address:
        return LOOPBACK  # a cluster made on the spot is this machine alone
    host, _ = split_address(ray_address)
    for towards in (host, _FAR_AWAY):
        mine = _route(towards)
        if mine is not None and not ipaddress.ip_address(mine).is_loopback:
            return mine
    return LOOPBACK


def numeric(host: str) -> str:
    """The number of a name, for ZeroMQ binds to no name. Raises UsageError when nobody knows the name."""
    try:
        found: str = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]  # type: ignore[assignment]
    except OSError as error:
        raise UsageError(f"--cluster-address {host} is not known: {error.strerror or error}.") from error
    return found


def split_address(ray_address: str) -> tuple[str, int]:
    """Host and port; port 0 if the address names none (`auto`)."""
    host, _, port = ray_address.rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdecimal() else (ray_address, 0)


def _route(host: str) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        address: str = probe.getsockname()[0]
        return address
    return None


def listen_for_admin(host: str, port: int) -> socket.socket | None:
    """None for port 0: the admin routes have none of their own. Raises UsageError."""
    if port == 0:
        return None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"The admin port {port} cannot be opened: {error.strerror}.") from error
