"""What a step of an engine that decodes loses while blocks leave its memory, or come to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from gpu.ends import CacheKind, Pair, Target
from gpu.load import Load, spread
from gpu.rows import Row

_BLOCKS = 400
"""Of LLaMA-7B 3 GiB: both ends have the weights of a model beside it."""


def slowdown(target: Target, blocks: int) -> Iterator[Row]:
    """Steps alone, and while pulls of 1,024 tokens follow each other without a pause: at the source, then at the
    target, by each way. The mean beside the mean alone, of the same end, is what counts; and what of the engine's time
    a GiB takes, for no server moves blocks without a pause."""
    seconds = 0.3 if target.setting.quick else 2.5
    ways = {"staged": False} | ({"on the device": True} if target.setting.device.type == "cuda" else {})
    for way, on_device in ways.items():
        with target.opened(CacheKind(blocks=min(blocks, _BLOCKS), layout="LBHNC", on_device=on_device)) as pair:
            yield from ({"way": way} | row for row in _of_both_ends(pair, seconds))


def _of_both_ends(pair: Pair, seconds: float) -> Iterator[Row]:
    target, count = pair.target, pair.blocks_of(1024)
    target.ask("make_load", pair.name)
    alone = target.ask("steps", seconds)
    serving, moved = _source_serves(pair, count, seconds)
    again = target.ask("steps", seconds)
    yield from _beside("source", alone, "source serves", serving, again, moved)
    load = Load(target.setting.load, pair.cache.layers, target.setting.device)
    load.steps(0.1)
    alone = spread(load.steps(seconds))
    receiving, moved = _target_receives(pair, count, seconds, load)
    yield from _beside("target", alone, "target receives", receiving, spread(load.steps(seconds)), moved)


def _beside(end: str, alone: Row, case: str, row: Row, again: Row, moved_bytes: int) -> Iterator[Row]:
    alone_ms = (alone["mean_ms"] + again["mean_ms"]) / 2
    lost_ms = row["steps"] * (row["mean_ms"] - alone_ms)
    seconds = row["steps"] * row["mean_ms"] / 1e3
    yield {"case": f"{end} alone"} | alone
    yield (
        {"case": case}
        | row
        | {
            "moved_gb_s": round(moved_bytes / seconds / 1e9, 2),
            "alone_ms": round(alone_ms, 3),
            "lost_ms_per_gib": round(lost_ms / (moved_bytes / 2**30), 2),
        }
    )
    yield {"case": f"{end} alone again"} | again


def _source_serves(pair: Pair, count: int, seconds: float) -> tuple[Row, int]:
    """Steps, and bytes that were moved meanwhile."""
    pair.target.begin("steps", seconds)
    moved = 0
    while not pair.target.answered:
        pair.pull_any(count)
        moved += count * pair.block_bytes
    return pair.target.answer(), moved


def _target_receives(pair: Pair, count: int, seconds: float, load: Load) -> tuple[Row, int]:
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
    return spread(durations), moved
