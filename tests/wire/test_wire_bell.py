from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest
import zmq

from llumnix.wire.bell import Bell

WAIT_S = 10.0


@pytest.fixture
def bell() -> Iterator[Bell]:
    context = zmq.Context()
    bell = Bell(context)
    yield bell
    bell.close()
    context.term()


def test_thread_that_waits_at_nothing_else_hears_each_ring(bell: Bell) -> None:
    heard: SimpleQueue[int] = SimpleQueue()

    def listen() -> None:
        for ring in range(3):
            bell.heard.poll()
            bell.hush()
            heard.put(ring)

    listener = threading.Thread(target=listen)
    listener.start()
    for ring in range(3):
        bell.ring()
        assert heard.get(timeout=WAIT_S) == ring
    listener.join(WAIT_S)
    assert not listener.is_alive()


def test_ring_that_nobody_waits_for_yet_is_heard_by_who_comes(bell: Bell) -> None:
    bell.ring()
    assert bell.heard.poll(round(WAIT_S * 1e3))
    bell.hush()
    assert not bell.heard.poll(0)
