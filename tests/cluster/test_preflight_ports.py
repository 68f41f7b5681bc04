"""Whether ports are free, and with which flag another one is chosen."""

from __future__ import annotations

import socket

import pytest

from llumnix.cluster.preflight import check_port
from llumnix.errors import UsageError
from llumnix.flags import parse_serve


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("--port {}", "--port"),
        ("--port 0 --admin-port {}", "--admin-port"),
        ("--uds s --admin-port {}", "--admin-port"),
    ],
)
def test_port_that_is_taken_is_told_with_its_own_flag(line: str, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"^Port {port} on 127.0.0.1 .* in use; choose another with {flag}.$"):
            check_port(parse_serve(line.format(port).split()))


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "no.such.host.invalid", "192.0.2.77"])
def test_host_that_is_none_of_ours_is_told_in_one_sentence(host: str) -> None:
    with pytest.raises(UsageError, match=rf"^Nobody can listen on --host {host} here: [^.]+\.$"):
        check_port(parse_serve(["--host", host]))


def test_free_ports_are_no_reason() -> None:
    check_port(parse_serve(["--port", "0", "--admin-port", "0"]))
