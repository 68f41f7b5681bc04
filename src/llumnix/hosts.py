"""Hosts by number or by name. The number of an IPv6 host has colons, so before a port it stands in brackets."""

from __future__ import annotations

import ipaddress
import socket

from llumnix.errors import in_a_clause


def family(host: str) -> socket.AddressFamily:
    """In which a socket is opened for it; a name is taken for one of IPv4."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def bracketed(host: str) -> str:
    """As it stands before a port, and in a URL."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: whether it resolves is for the connection to find out
        return False


def split(address: str) -> tuple[str, int]:
    """Host and port. Raises ValueError for what is not HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ValueError(f"{address} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def why_unusable(error: OSError | UnicodeError) -> str:
    """What was wrong with a host that nothing could be done with: within a sentence, behind a colon. Python raises
    UnicodeError for a name that cannot be any."""
    return "no name of a host is like that" if isinstance(error, UnicodeError) else in_a_clause(error)
