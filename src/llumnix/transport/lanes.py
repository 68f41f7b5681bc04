"""A large pull as several at once, each over a connection of its own: one processor copies 5 GB/s to or from a socket,
and the way between a device and its host takes ten times as much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, as_completed, wait

import numpy as np

from llumnix.transport.fetching import SocketPull

LANE_BYTES = 2 << 20
"""From this size on a lane is worth its connection."""


def lanes_of(pull: SocketPull, block_bytes: int, most: int) -> list[SocketPull]:
    """`pull` itself, or up to `most` parts of it."""
    blocks = len(pull.source_blocks)
    count = min(most, blocks, blocks * block_bytes // LANE_BYTES)
    if count <= 1:
        return [pull]
    split = (np.array_split(ids, count) for ids in (pull.source_blocks, pull.target_blocks))
    return [pull.part(sources, targets) for sources, targets in zip(*split, strict=True)]


def pull_all(lanes: Sequence[SocketPull], fetch: Callable[[SocketPull], None], threads: Executor) -> None:
    """Raises what the first lane that failed did; the others are then called off. All are over when it is."""
    futures = [threads.submit(fetch, lane) for lane in lanes]
    try:
        for future in as_completed(futures):
            future.result()
    finally:
        for lane in lanes:
            lane.cancel("another part of the pull failed")
        wait(futures)
