"""Whose web pages may call the admin routes while no key is set: nobody's but our own."""

from __future__ import annotations

import re
import socket

import pytest

from llumnix.engine.vllm.front_end.origin import KnownHosts

LOCAL = KnownHosts.of("127.0.0.1", [""])


def refused(hosts: KnownHosts, host: str, origin: str | None = None, site: str | None = None) -> bool:
    return bool(hosts.why_foreign([host], [origin] if origin is not None else [], [site] if site is not None else []))


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "127.0.0.1", "127.8.9.1:80", "localhost:8000", "LOCALHOST", "localhost.", "[::1]:8000"]
)
def test_loopback_is_always_known(host: str) -> None:
    assert not refused(LOCAL, host)
    assert not refused(KnownHosts.of("0.0.0.0", []), host)
    assert not refused(KnownHosts.of("llm.example", []), host)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "192.0.2.7"]
)
def test_name_that_somebody_else_may_lead_here_is_not(host: str) -> None:
    assert refused(LOCAL, host)


def test_server_that_listens_on_all_addresses_is_called_by_number_but_not_by_any_name() -> None:
    for everywhere in ("0.0.0.0", "::", ""):
        hosts = KnownHosts.of(everywhere, [])
        assert not refused(hosts, "192.0.2.7:8000")
        assert not refused(hosts, "[2001:db8::7]:8000")
        assert not refused(hosts, socket.gethostname())
        assert refused(hosts, "evil.example")


def test_names_that_are_allowed() -> None:
    hosts = KnownHosts.of("0.0.0.0", [" LLM.example", "llm"])
    assert not refused(hosts, "llm.example:443")
    assert not refused(hosts, "llm")
    assert refused(hosts, "www.llm.example")
    assert not refused(KnownHosts.of("127.0.0.1", ["*"]), "anything.example")
    assert not refused(KnownHosts.of("192.0.2.7", []), "192.0.2.7:8000")


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://127.0.0.1",  # of another server on this machine
        "http://127.0.0.1:3000",
        "http://localhost:8000",  # may be somebody else's idea of localhost
        "null",
        "",
        "http://[",
        "file://",
    ],
)
def test_page_of_another_origin(origin: str) -> None:
    assert refused(LOCAL, "127.0.0.1:8000", origin)


def test_own_page_and_pages_of_allowed_hosts() -> None:
    assert not refused(LOCAL, "127.0.0.1:8000", "http://127.0.0.1:8000", "same-origin")
    behind_a_proxy = KnownHosts.of("127.0.0.1", ["llm.example"])
    assert not refused(behind_a_proxy, "127.0.0.1:8000", "https://llm.example", "same-origin")
    assert not refused(behind_a_proxy, "127.0.0.1:8000", "https://llm.example", "cross-site"), "named on purpose"


@pytest.mark.parametrize(("site", "bad"), [("cross-site", True), ("same-site", True), ("none", False), ("x", True)])
def test_what_the_browser_says_of_the_page(site: str, bad: bool) -> None:
    assert refused(LOCAL, "127.0.0.1:8000", None, site) == bad
    assert refused(LOCAL, "127.0.0.1:8000", "http://127.0.0.1:8000", site) == bad


def test_programs_say_none_of_it() -> None:
    assert not KnownHosts.of("127.0.0.1", []).why_foreign([], [], [])


@pytest.mark.parametrize("origin", ["http://ops.example", "https://ops.example.:8443", "http://[fd00::7]:3000"])
def test_page_that_may_call_is_one_of_the_allowed(origin: str) -> None:
    hosts = KnownHosts.of("127.0.0.1", ["ops.example", "fd00::7"])
    assert hosts.why_foreign(["127.0.0.1:9000"], [origin], ["cross-site"]) == ""
    assert re.fullmatch(hosts.allowed_pages, origin)
    assert not re.fullmatch(hosts.allowed_pages, origin.replace("ops", "evil").replace("::7", "::8"))
