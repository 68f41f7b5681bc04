"""Whether a request may come from a web page of somebody else, opened in the browser of somebody who reaches us.

Two ways are open to such a page. It can send requests to our address right away (`Origin` and `Sec-Fetch-Site` tell of
it). Or its own name can be made to lead to our address, and then it is no stranger to the browser; but requests still
carry that name in `Host`. Programs that are no browsers send none of the first two, and the name that they were given.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from llumnix.hosts import bracketed

_EVERY_ADDRESS = ("", "0.0.0.0", "::")
_ANY = "*"


def listening_host(args: argparse.Namespace) -> str:
    """vLLM's own default is every address. Whoever asks for a unix socket asks for none."""
    return args.host or ("127.0.0.1" if args.uds else "0.0.0.0")


@dataclass(frozen=True, slots=True)
class KnownHosts:
    """The names and addresses under which the routes may be called. Loopback ones always are."""

    own: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()
    """Named on purpose: their pages may call, too."""
    any_number: bool = False
    """By any address that is a number, too: it cannot be made to lead elsewhere."""
    any_name: bool = False

    @classmethod
    def of(cls, listening_on: str, allowed: Iterable[str]) -> KnownHosts:
        """`listening_on`: an address or a name; of a unix socket, which no browser opens but a proxy may, loopback."""
        names = {name.strip().lower() for name in allowed} - {""}
        return cls(
            own=frozenset({socket.gethostname().lower(), listening_on.lower()} - set(_EVERY_ADDRESS)),
            allowed=frozenset(names - {_ANY}),
            any_number=listening_on in _EVERY_ADDRESS,
            any_name=_ANY in names,
        )

    @property
    def allowed_pages(self) -> str:
        """A regular expression of the Origins whose pages may call; empty if there are none."""
        names = "|".join(re.escape(bracketed(name)) for name in sorted(self.allowed))
        return f"https?://({names})\\.?(:[0-9]+)?" if names else ""

    def why_foreign(self, hosts: Sequence[str], origins: Sequence[str], sites: Sequence[str]) -> str:
        """Values of `Host`, `Origin` and `Sec-Fetch-Site`. Empty if nothing is wrong with them."""
        for host in hosts:
            if not self._knows(host):
                return (
                    f"the host {_shown(host)} is not known here; it may be named with --admin-allowed-hosts, and with "
                    "an API key any is good"
                )
        pages = [_netloc(origin) for origin in origins]
        if pages and all(_name_of(page) in self.allowed for page in pages):
            return ""
        here = [host.lower() for host in hosts]
        for origin, page in zip(origins, pages, strict=True):
            if page not in here:
                return f"it comes from a web page of {_shown(origin)}"
        for site in sites:
            if site not in ("same-origin", "none"):
                return f"it comes from a web page of another site (Sec-Fetch-Site: {_shown(site)})"
        return ""

    def _knows(self, host: str) -> bool:
        name = _name_of(host)
        if self.any_name or name in self.own | self.allowed or name == "localhost":
            return True
        number = _number(name)
        return number is not None and (self.any_number or number.is_loopback)


def _netloc(origin: str) -> str:
    """`host:port` of an Origin; what no host is called for `null` and nonsense."""
    with contextlib.suppress(ValueError):
        return urlsplit(origin).netloc.lower() or "?"
    return "?"


def _name_of(netloc: str) -> str:
    """The host of `host:port`, `[v6]:port` or `host`."""
    if netloc.startswith("["):
        return netloc[1:].partition("]")[0].lower()
    return netloc.partition(":")[0].lower().removesuffix(".")


def _number(name: str) -> IPv4Address | IPv6Address | None:
    with contextlib.suppress(ValueError):
        address = ip_address(name)
        return getattr(address, "ipv4_mapped", None) or address
    return None


def _shown(value: str) -> str:
    return repr(value if len(value) <= 100 else value[:100] + "…")
