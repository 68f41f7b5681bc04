"""`llumnix serve` as a service: its manager hears when it serves and when it ends, a collector reads its logs."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from served import Serve

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]


def test_service_manager_and_log_collector_understand_it(serve: Callable[..., Serve], tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "n"))
        listener.settimeout(60)
        told = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "200000"}
        server = serve("--log-format", "json", "--log-dir", str(logs), more_environment=told)
        heard: list[str] = []
        while "READY=1" not in heard:
            heard.append(listener.recv(4096).decode())
        beats = heard.count("WATCHDOG=1")
        while heard.count("WATCHDOG=1") < beats + 3:
            heard.append(listener.recv(4096).decode())
        server.process.send_signal(signal.SIGTERM)
        while "STOPPING=1" not in heard:
            heard.append(listener.recv(4096).decode())
        assert server.end() == 0
    assert any(word.startswith("STATUS=i0 ready in") for word in heard)
    said = [json.loads(line) for line in server.console().splitlines()]
    assert {line["process"] for line in said} == {"launcher"}
    assert said[-1]["message"] == "stopped"
    for line in (logs / "scheduler.log").read_text().splitlines():
        assert json.loads(line)["process"] == "scheduler"
