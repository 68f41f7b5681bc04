"""Which way blocks go between two instances: pure, from the source's address and where the target is.

| pair | way | why |
|---|---|---|
| one GPU; two of one host, if asked for | cuda | the device copies, nothing goes through the host (mapped.py) |
| as below, with NIXL at both ends | nixl | the puller's NIC, or its kernel, reads (nixl.py) |
| one host | unix | faster than TCP; a dead peer is seen at once |
| two hosts, and one host when the unix socket cannot be reached | tcp | works everywhere |

See docs/understand/adr/0002-transport.md for the measurements.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from llumnix import hosts
from llumnix.transport.port import TransportError

PREFERENCE = ("cuda", "nixl", "unix", "tcp")
"""Best first."""


class Way(msgspec.Struct, frozen=True):
    """One way to reach a source: `where` is a path (unix, and others on one host) or host:port (tcp)."""

    scheme: str
    where: str

    def __str__(self) -> str:
        return f"{self.scheme}:{self.where}"

    @property
    def on_one_host(self) -> bool:
        return self.where.startswith("/")

    @property
    def host_and_port(self) -> tuple[str, int]:
        return hosts.split(self.where)


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """What a source exports, as `incarnation@host,scheme:where,scheme:where`, or `incarnation@host@gpu,…`.

    The incarnation is unique to one transport object, so that a port or a path that was taken over by
    another process is never mistaken for the one that was meant.
    """

    incarnation: str
    host: str
    ways: tuple[Way, ...]
    gpu: str = ""
    """Its UUID; empty if there is none, or nobody can tell. Says which ways are worth a try, and proves nothing."""

    def __str__(self) -> str:
        where = [self.incarnation, self.host, *([self.gpu] if self.gpu else [])]
        return ",".join(["@".join(where), *map(str, self.ways)])

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises TransportError when `text` is not an address."""
        head, *ways = text.split(",")
        incarnation, host, *gpu = head.split("@") if "@" in head else ("", "")
        pairs = [way.partition(":") for way in ways]
        complete = all(scheme and where for scheme, _, where in pairs)
        parsed = tuple(Way(scheme, where) for scheme, _, where in pairs)
        reached = all(_leads_somewhere(way) for way in parsed if way.scheme in PREFERENCE)
        if not (incarnation and host and all(gpu) and len(gpu) <= 1 and complete and reached):
            raise TransportError(f"{text[:200]!r} is not the address of a transport")
        return cls(incarnation=incarnation, host=host, ways=parsed, gpu=gpu[0] if gpu else "")


def _leads_somewhere(way: Way) -> bool:
    if way.on_one_host and way.scheme != "tcp":
        return True
    try:
        return bool(way.host_and_port)
    except ValueError:
        return False


class Choice(msgspec.Struct, frozen=True):
    """Ways to try, best first, and why each other one is not among them."""

    ways: tuple[Way, ...]
    passed_over: tuple[str, ...]


def shares_gpu(source: Address, host: str, gpu: str) -> bool:
    """Whether a target there is on the very GPU that the source is on. What cannot be told is another one."""
    return source.host == host and source.gpu == gpu != ""


def choose(source: Address, host: str, able: Collection[str]) -> Choice:
    """The ways to pull from `source` for a target on `host` that can speak the schemes in `able`."""
    ways: list[Way] = []
    passed_over: list[str] = []
    for way in source.ways:
        obstacle = _obstacle(way, source.host == host, able)
        if obstacle is None:
            ways.append(way)
        else:
            passed_over.append(f"{way.scheme}: {obstacle}")
    ways.sort(key=lambda way: PREFERENCE.index(way.scheme))
    return Choice(tuple(ways), tuple(passed_over))


def _obstacle(way: Way, same_host: bool, able: Collection[str]) -> str | None:
    if way.scheme not in PREFERENCE or way.scheme not in able:
        return "this end does not speak it"
    if same_host:
        return None
    if way.on_one_host:
        return "the source is on another host"
    if hosts.is_loopback(way.host_and_port[0]):
        return "the source listens on its loopback only, and is on another host"
    return None
