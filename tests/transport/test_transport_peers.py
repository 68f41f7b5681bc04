"""What is kept open of peers: once for each, at most so many, and no longer than they are there."""

from __future__ import annotations

import pytest

from llumnix.transport import peers as module
from llumnix.transport.peers import MOST, Peers
from llumnix.transport.port import TransportError

pytestmark = pytest.mark.pure


class Opened:
    def __init__(self) -> None:
        self.now: list[bytes] = []
        self.ever = 0
        self.peers = Peers(self._open, self._close)

    def _open(self, handle: bytes) -> bytes:
        self.now.append(handle)
        self.ever += 1
        return handle

    def _close(self, handle: bytes) -> None:
        self.now.remove(handle)

    def read(self, source: str) -> None:
        self.peers.take(source, source.encode())
        self.peers.give_back(source)


def test_a_peer_is_opened_once_and_of_many_the_one_that_rested_longest_is_closed() -> None:
    opened = Opened()
    opened.peers.take("busy", b"busy")
    for number in range(10 * MOST):
        opened.read("often")
        opened.read(f"peer {number}")
        assert len(opened.now) <= MOST
    assert {b"busy", b"often"} <= set(opened.now)
    assert opened.ever == 2 + 10 * MOST


def test_what_is_read_just_now_is_never_closed_and_does_not_count() -> None:
    opened = Opened()
    for number in range(MOST + 3):
        opened.peers.take(f"busy {number}", b"%d" % number)
    opened.peers.forget("busy 0")
    opened.peers.close()
    assert len(opened.now) == MOST + 3
    opened.peers.give_back("busy 0")
    assert len(opened.now) == MOST + 2, "it was gone, and its last reader has ended"
    for number in range(1, MOST + 3):
        opened.peers.give_back(f"busy {number}")
    opened.peers.close()
    assert opened.now == []


def test_one_that_was_forgotten_is_opened_anew() -> None:
    opened = Opened()
    opened.read("peer")
    opened.peers.forget("peer")
    opened.peers.forget("peer")
    assert opened.now == []
    opened.read("peer")
    assert (opened.now, opened.ever) == ([b"peer"], 2)


def test_one_that_cannot_be_closed_is_forgotten_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: bytes) -> None:
        raise TransportError("the device is gone")

    peers = Peers(lambda handle: handle, fail)
    peers.take("peer", b"handle")
    peers.give_back("peer")
    with caplog.at_level("WARNING", module.__name__):
        peers.forget("peer")
    assert len(peers) == 0
    assert "the device is gone" in caplog.text
