"""How fast blocks move, and which part of the way is the limit."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from gpu.ends import CacheKind, Pair, Target, own_cpu_s
from gpu.rows import Row
from llumnix.transport.choose import Address
from llumnix.transport.staging import StagedPool

MIB, GIB = 1 << 20, 1 << 30
TOKENS = (32, 256, 1024, 4096, 8192)
_STAGING_MIB = (1, 4, 16)
_PROBE_BYTES = 64 * MIB


def bandwidth(target: Target, blocks: int) -> Iterator[Row]:
    """Pulls by number of tokens, of both kinds of layout; then of 1,024 tokens by the size of the staging buffers."""
    runs = 2 if target.setting.quick else 7
    for layout in ("LBNHC", "BLNHC"):
        with target.opened(CacheKind(blocks=blocks, layout=layout)) as pair:
            for count in dict.fromkeys(map(pair.blocks_of, TOKENS)):
                yield {"way": "as served", "layout": layout} | timed_pulls(pair, count, runs)
    for size in _STAGING_MIB:
        kind = CacheKind(blocks=min(blocks, 260), layout="LBNHC", staging_bytes=size * MIB)
        with target.opened(kind) as pair:
            yield {"way": f"staged, {size} MiB", "layout": kind.layout} | timed_pulls(pair, pair.blocks_of(1024), 3)


def ipc(target: Target, blocks: int) -> Iterator[Row]:
    """Pulls as between instances that share a GPU: the target reads the source's memory. Compared byte by byte, too."""
    if target.setting.device.type != "cuda":
        yield {"skipped": "a CPU's memory is not mapped"}
        return
    for layout in ("LBNHC", "BLNHC"):
        with target.opened(CacheKind(blocks=blocks, layout=layout, on_device=True)) as pair:
            for count in dict.fromkeys(map(pair.blocks_of, TOKENS)):
                row = {"way": "on the device", "layout": layout} | timed_pulls(pair, count, 7)
                sources, targets = pair.ids(count), pair.ids(count)
                pair.pull(sources, targets)
                told = bool(Address.parse(pair.address).gpu)
                yield row | {"wrong_blocks": pair.cache.wrong(targets, sources), "gpu_is_told": told}


def timed_pulls(pair: Pair, count: int, runs: int) -> Row:
    here_s, there_s = own_cpu_s(), pair.target.ask("cpu_s")
    times = [pair.pull_any(count) for _ in range(runs)]
    here_s, there_s = own_cpu_s() - here_s, pair.target.ask("cpu_s") - there_s
    size = count * pair.block_bytes
    return {
        "tokens": count * pair.target.setting.shape.tokens,
        "mib": round(size / MIB, 1),
        "first_ms": round(times[0] * 1e3, 2),
        "median_ms": round(statistics.median(times) * 1e3, 2),
        "best_gb_s": round(size / min(times) / 1e9, 2),
        "source_cpu_s_per_gib": round(there_s * GIB / (runs * size), 3),
        "target_cpu_s_per_gib": round(here_s * GIB / (runs * size), 3),
    }


def hostside(target: Target, blocks: int) -> Iterator[Row]:
    """Without a socket: what a pool alone takes to bring blocks to the host and back, and the device's own limits."""
    kind = CacheKind(blocks=min(blocks, 260), layout="LBNHC", staging_bytes=16 * MIB)
    with target.opened(kind) as pair:
        count = min(64, kind.blocks - 1)
        pool = StagedPool(pair.cache.views, fingerprint="x", staging_bytes=16 * MIB)
        for way, direction in (("pool to host", pool.reading), ("pool from host", pool.writing)):

            def through(direction: Callable[..., Iterator[object]] = direction, count: int = count) -> None:
                for _ in direction(pair.ids(count), time.monotonic() + 60):
                    pass

            yield {"way": way, "best_gb_s": _best_gb_s(through, count * pair.block_bytes, target)}
        if target.setting.device.type == "cuda":
            yield from _device_alone(target, pair.cache.views[0])


def _device_alone(target: Target, view: torch.Tensor) -> Iterator[Row]:
    device = target.setting.device
    pinned = torch.empty(_PROBE_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(_PROBE_BYTES, dtype=torch.uint8, device=device)
    other = torch.empty_like(there)
    ids = torch.arange(min(64, view.shape[0]), device=device)
    some = view.index_select(0, ids)
    works: tuple[tuple[str, Callable[[], object], int], ...] = (
        ("device to pinned", lambda: pinned.copy_(there, non_blocking=True), _PROBE_BYTES),
        ("pinned to device", lambda: there.copy_(pinned, non_blocking=True), _PROBE_BYTES),
        ("device to itself", lambda: other.copy_(there, non_blocking=True), _PROBE_BYTES),
        ("gather kernel", lambda: view.index_select(0, ids), some.nbytes),
        ("scatter kernel", lambda: view.index_copy_(0, ids, some), some.nbytes),
    )
    for way, work, size in works:
        yield {"way": way, "best_gb_s": _best_gb_s(work, size, target, times=20)}


def _best_gb_s(work: Callable[[], object], size: int, target: Target, times: int = 1) -> float:
    seconds = []
    with torch.inference_mode():
        for _ in range(4):
            start = time.perf_counter()
            for _ in range(times):
                work()
            if target.setting.device.type == "cuda":
                torch.cuda.synchronize(target.setting.device)
            seconds.append(time.perf_counter() - start)
    return round(times * size / min(seconds) / 1e9, 2)
