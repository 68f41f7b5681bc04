"""What a step of an engine that decodes loses while blocks leave its memory, or come to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from gpu.ends import CacheKind, Pair, Target
from gpu.load import Load, spread
from gpu.rows import Row

_BLOCKS = 400
"""Of LLaMA-7B 3 GiB: both ends have the weights of a model beside it."""


def slowdown(target: Target, blocks: int) -> Iterator[Row]:
    """Steps alone, and while pulls of 1,024 tokens follow each other without a pause: at the source, then at the
    target, by each way. The mean beside the mean alone, of the same end, is what counts."""
    seconds = 0.3 if target.setting.quick else 2.5
    ways = {"staged": False} | ({"on the device": True} if target.setting.device.type == "cuda" else {})
    for way, on_device in ways.items():
        with target.opened(CacheKind(blocks=min(blocks, _BLOCKS), layout="LBNHC", on_device=on_device)) as pair:
            yield from ({"way": way} | row for row in _of_both_ends(pair, seconds))


def _of_both_ends(pair: Pair, seconds: float) -> Iterator[Row]:
    target, count = pair.target, pair.blocks_of(1024)
    target.ask("make_load", pair.name)
    alone = target.ask("steps", seconds)
    yield {"case": "source alone"} | alone
    yield {"case": "source serves"} | _source_serves(pair, count, seconds) | {"alone_ms": alone["mean_ms"]}
    yield {"case": "source alone again"} | target.ask("steps", seconds)
    load = Load(target.setting.load, pair.cache.layers, target.setting.device)
    load.steps(0.1)
    alone = spread(load.steps(seconds))
    yield {"case": "target alone"} | alone
    yield {"case": "target receives"} | _target_receives(pair, count, seconds, load) | {"alone_ms": alone["mean_ms"]}


def _source_serves(pair: Pair, count: int, seconds: float) -> Row:
    pair.target.begin("steps", seconds)
    start, moved = time.perf_counter(), 0
    while not pair.target.answered:
        pair.pull_any(count)
        moved += count * pair.block_bytes
    took_s = time.perf_counter() - start
    return {**pair.target.answer(), "moved_gb_s": round(moved / took_s / 1e9, 2)}


def _target_receives(pair: Pair, count: int, seconds: float, load: Load) -> Row:
    over = threading.Event()
    moved = 0

    def pull() -> None:
        nonlocal moved
        while not over.is_set():
            pair.pull_any(count)
            moved += count * pair.block_bytes

    puller = threading.Thread(target=pull)
    puller.start()
    durations = load.steps(seconds)
    over.set()
    puller.join()
    return {**spread(durations), "moved_gb_s": round(moved / sum(durations) / 1e9, 2)}
