"""Connections that break: the instance must not go on as if nothing were lost, unless nobody reads any more."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

pytest.importorskip("vllm")

from frame.server import wait_for

from llumnix.engine.vllm import curve_sockets
from llumnix.engine.vllm.curve_sockets import Lines, guard_engine_sockets, require_curve
from llumnix.wire.curve import CurveKeys, bound_address

GRACE_S = 0.3
LONGEST_S = 10.0


class FrontEnd:
    """A token socket on one side, an instance's on the other, and what was said about the line between them."""

    def __init__(self) -> None:
        self.broken: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.lines = Lines(self.broken.put, GRACE_S, LONGEST_S)
        self._context, self._reading_context = zmq.Context(), zmq.Context()
        self._reader = self._reading_context.socket(zmq.PULL)
        self._reader.bind("tcp://127.0.0.1:*")
        self._writer = self._context.socket(zmq.PUSH)
        self._writer.connect(bound_address(self._reader))
        self.lines.watch(self._context, self._writer, 3)
        self._writer.send(b"token")
        assert self._reader.poll(5000)

    def breaks(self) -> None:
        self._address = bound_address(self._reader)
        self._reader.close(linger=0)
        self._reading_context.term()

    def comes_back(self) -> None:
        """It, or another one in its place."""
        self._reading_context = zmq.Context()
        self._reader = self._reading_context.socket(zmq.PULL)
        self._reader.bind(self._address)

    def close(self) -> None:
        self._writer.close(linger=0)
        self._context.term()  # would hang if the watch did not end with what it watches
        self._reader.close(linger=0)
        self._reading_context.term()


@pytest.fixture
def front_end() -> Iterator[FrontEnd]:
    front_end = FrontEnd()
    yield front_end
    front_end.close()


def test_broken_line_to_a_front_end_that_lives_is_told(front_end: FrontEnd) -> None:
    front_end.breaks()
    front_end.comes_back()
    assert front_end.broken.get(timeout=10) == 3


def test_launcher_that_tells_late_of_a_dead_front_end_costs_no_instance(front_end: FrontEnd) -> None:
    front_end.breaks()
    time.sleep(3 * GRACE_S)
    front_end.lines.excuse(3)
    front_end.comes_back()
    with pytest.raises(queue.Empty):
        front_end.broken.get(timeout=5 * GRACE_S)


def test_line_that_never_comes_back_is_told_at_last(front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    front_end.breaks()
    wait_for(lambda: 3 in front_end.lines._broken_s, "the break")
    with pytest.raises(queue.Empty):
        front_end.broken.get(timeout=3 * GRACE_S)
    monkeypatch.setattr(curve_sockets, "monotonic", lambda: time.monotonic() + LONGEST_S)
    assert front_end.broken.get(timeout=10) == 3


def test_line_that_holds_is_no_news(front_end: FrontEnd) -> None:
    with pytest.raises(queue.Empty):
        front_end.broken.get(timeout=3 * GRACE_S)


@pytest.mark.parametrize("first", ["breaks", "excuse"])
def test_line_of_a_front_end_that_died_may_break(front_end: FrontEnd, first: str) -> None:
    """Whichever is heard of first."""
    if first == "excuse":
        front_end.lines.excuse(3)
    front_end.breaks()
    front_end.lines.excuse(3)
    front_end.comes_back()
    with pytest.raises(queue.Empty):
        front_end.broken.get(timeout=3 * GRACE_S)


def test_death_of_another_front_end_excuses_nothing(front_end: FrontEnd) -> None:
    front_end.lines.excuse(2)
    front_end.breaks()
    front_end.comes_back()
    assert front_end.broken.get(timeout=10) == 3


def test_engine_without_sockets_yet_may_fork_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.v1.engine.core.make_zmq_socket", None)  # put back afterwards
    book: Any = SimpleNamespace(fronts=())
    before = set(threading.enumerate())
    guard_engine_sockets(book, CurveKeys.make())
    assert set(threading.enumerate()) <= before


def test_socket_without_keys_is_not_taken_for_a_guarded_one() -> None:
    keys = CurveKeys.make()
    with zmq.Context() as context:
        with context.socket(zmq.PUSH) as bare, pytest.raises(RuntimeError, match="not be guarded"):
            require_curve(bare)
        keys.connecting(context)
        with context.socket(zmq.PUSH) as guarded:
            require_curve(guarded)
