"""What a service manager hears of the launcher, on a socket of its own."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llumnix.cluster.service_manager import ServiceManager


class Listener:
    """As systemd listens."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(0.2)

    def heard(self) -> list[str]:
        words = []
        try:
            while True:
                words.append(self._socket.recv(4096).decode())
        except TimeoutError:
            return words

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    made = Listener(str(tmp_path / "notify"))
    yield made
    made.close()


def manager(tmp_path: Path, **more: str) -> ServiceManager:
    return ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify"), **more})


def test_it_hears_how_things_are(listener: Listener, tmp_path: Path) -> None:
    told = manager(tmp_path)
    told.status("serving tiny at http://127.0.0.1:8000\n  try      curl")
    told.ready()
    told.stopping()
    assert listener.heard() == ["STATUS=serving tiny at http://127.0.0.1:8000", "READY=1", "STOPPING=1"]


def test_it_hears_often_enough_that_the_launcher_lives(listener: Listener, tmp_path: Path) -> None:
    told = manager(tmp_path, WATCHDOG_USEC="10000000", WATCHDOG_PID="1")
    now = time.monotonic()
    for second in range(11):
        assert told.next_beat_s is not None
        assert told.next_beat_s <= now + second + 5, "half of its patience"
        told.beat(now + second)
    assert listener.heard() == ["WATCHDOG=1"] * 3


def test_it_is_not_told_that_the_launcher_lives_unless_it_asked(listener: Listener, tmp_path: Path) -> None:
    told = manager(tmp_path)
    assert told.next_beat_s is None
    told.beat(time.monotonic() + 1e6)
    assert listener.heard() == []


def test_it_may_listen_in_the_abstract_namespace() -> None:
    name = f"llumnix-test-notify-{os.getpid()}"
    listener = Listener(f"\0{name}")
    ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).ready()
    assert listener.heard() == ["READY=1"]
    listener.close()


def test_children_are_not_told_where_it_listens() -> None:
    environment = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    ServiceManager(environment)
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "soon"}])
def test_nothing_happens_where_nobody_listens(environment: dict[str, str]) -> None:
    told = ServiceManager(environment)
    told.ready()
    told.beat(time.monotonic())
    told.stopping()


def test_one_that_does_not_read_holds_nobody_up(listener: Listener, tmp_path: Path) -> None:
    told = manager(tmp_path)
    began = time.monotonic()
    for _ in range(5000):
        told.ready()
    assert time.monotonic() - began < 5
