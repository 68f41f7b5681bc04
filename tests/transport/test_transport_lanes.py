"""A large pull into memory that is staged comes over several connections at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transport_ends import PLENTY_S, SECRET, finished

from llumnix.transport import lanes
from llumnix.transport.memory import MemoryPool
from llumnix.transport.port import Batches, BlockIds, PullInFlight, TransportError
from llumnix.transport.sockets import SocketOptions, SocketTransport
from llumnix.transport.staging import MAX_STREAMS, StagedPool

BLOCKS = 8

Meanwhile = Callable[[BlockIds], None]


class Source(MemoryPool):
    """Block b is full of b. Calls `meanwhile` with what it is asked for."""

    meanwhile: Meanwhile

    @classmethod
    def filled(cls) -> Source:
        memory = np.repeat(np.arange(BLOCKS, dtype=np.int64)[:, None], 8, axis=1)
        return cls.of_arrays([memory], fingerprint="x")

    def reading(self, blocks: BlockIds, until_s: float) -> Batches:
        self.meanwhile(blocks)
        yield from super().reading(blocks, until_s)


class Ends:
    def __init__(self, folder: Path) -> None:
        self.pool = Source.filled()
        self.memory = torch.full((BLOCKS, 8), -1)
        options = SocketOptions(folder=folder, tcp_host=None)
        self.source = SocketTransport(self.pool, SECRET, options)
        self.target = SocketTransport(StagedPool([self.memory], fingerprint="x"), SECRET, options)
        self.go_on = threading.Event()

    def pull(self) -> PullInFlight:
        ids = range(BLOCKS)
        return self.target.pull(
            self.source.address, ids, ids, PLENTY_S, on_done=lambda _: None, on_released=lambda: None
        )

    def stall(self, *_: Any) -> None:
        self.go_on.wait(PLENTY_S)


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    monkeypatch.setattr(lanes, "LANE_BYTES", 1)
    made = Ends(tmp_path)
    yield made
    made.go_on.set()
    made.target.close()
    made.source.close()


def test_all_lanes_are_served_at_once(ends: Ends) -> None:
    together = threading.Barrier(MAX_STREAMS, timeout=PLENTY_S / 2)
    ends.pool.meanwhile = lambda _: [together.wait()].clear()
    result = finished(ends.pull().wait(PLENTY_S))
    assert (result.reason, result.bytes_read) == ("", BLOCKS * 64)
    assert ends.memory[:, 0].tolist() == list(range(BLOCKS))


def test_a_lane_that_fails_calls_the_others_off(ends: Ends) -> None:
    def break_or_stall(blocks: BlockIds) -> None:
        if 0 not in blocks:
            raise TransportError("its memory broke")
        ends.stall()

    ends.pool.meanwhile = break_or_stall
    result = finished(ends.pull().wait(PLENTY_S / 2))
    assert (result.ok, result.reason) == (False, "the source refused: its memory broke")


def test_all_lanes_end_with_a_pull_that_is_cancelled(ends: Ends) -> None:
    stalled = threading.Semaphore(0)

    def stall(_: BlockIds) -> None:
        stalled.release()
        ends.stall()

    ends.pool.meanwhile = stall
    pull = ends.pull()
    for _ in range(MAX_STREAMS):
        assert stalled.acquire(timeout=PLENTY_S / 2)
    pull.cancel()
    assert finished(pull.wait(PLENTY_S / 2)).reason == "the pull was cancelled"
    ends.pool.meanwhile = lambda _: None
    ends.go_on.set()
    assert finished(ends.pull().wait(PLENTY_S)).ok
