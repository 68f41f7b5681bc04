"""Does every byte arrive, and does what is in flight on the engine's stream come in between?"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gpu.ends import CacheKind, Pair, Target, busy
from gpu.rows import Row

LAYOUTS = ("LBHNC", "LBNHC", "BLHNC", "BLNHC")
"""Of vLLM's, those in which a block of a layer is one run (vllm/v1/kv_cache_layout.py)."""
_STEP_MS = 300.0
"""Longer than any pull here takes, the first of a process included."""
_HAZARD_BLOCKS = 8
_STAGING_ON_CPU_BYTES = 100_000
"""Where blocks would go without staging, and where they are small: many buffers full of them."""


def exact(target: Target, blocks: int) -> Iterator[Row]:
    """Blocks pulled in every layout, compared byte by byte, layer by layer."""
    staging_bytes = None if target.setting.device.type == "cuda" else _STAGING_ON_CPU_BYTES
    for layout in LAYOUTS:
        kind = CacheKind(blocks=min(blocks, 260), layout=layout, staging_bytes=staging_bytes)
        with target.opened(kind) as pair:
            for count in (1, 2, 7, min(200, kind.blocks // 2)):
                sources, targets = pair.ids(count), pair.ids(count)
                pulled = pair.pull(sources, targets)
                yield {
                    "layout": layout,
                    "blocks": count,
                    "regions": len(pair.cache.views),
                    "wrong_blocks": pair.cache.wrong(targets, sources),
                    "missing_bytes": count * pair.block_bytes - pulled.ended.bytes_read,
                    "ms": round(pulled.seconds * 1e3, 2),
                }


def hazards(target: Target, blocks: int) -> Iterator[Row]:
    """A pull is not ordered against work in flight on the engine's stream. So blocks must be wrong here without a fence
    (but for an engine on the default stream, which a first copy may happen to wait for), and none with it."""
    if target.setting.device.type != "cuda":
        yield {"skipped": "no step is in flight on a CPU"}
        return
    with target.opened(CacheKind(blocks=min(blocks, 260))) as pair:
        # What a process does for the first time waits for kernels to be loaded, and so for the step.
        pair.pull_any(_HAZARD_BLOCKS)
        _late_write(pair, own_stream=True, fence=False)
        for own_stream in (True, False):
            for fence in (False, True):
                yield _late_write(pair, own_stream, fence)
            yield _early_read(pair, own_stream)


def _late_write(pair: Pair, own_stream: bool, fence: bool) -> Row:
    """Blocks that a request has just given back, while its last step still writes a token there."""
    sources, targets = pair.ids(_HAZARD_BLOCKS), pair.ids(_HAZARD_BLOCKS)
    with torch.inference_mode(), busy(pair.target.setting.device, _STEP_MS, own_stream) as stream:
        for layer in pair.cache.layers:
            layer[targets[0], :, 3] = 0.125
    if fence:
        stream.synchronize()
    pulled = pair.pull(sources, targets)
    return {
        "case": "late write",
        "engine_stream": "own" if own_stream else "default",
        "fence": fence,
        "pull_ms": round(pulled.seconds * 1e3, 1),
        "spoilt_blocks": pair.cache.wrong(targets, sources),
        "must_be_spoilt": own_stream and not fence,
    }


def _early_read(pair: Pair, own_stream: bool) -> Row:
    """Blocks that are named before the step that computes them is over."""
    sources, targets = pair.ids(_HAZARD_BLOCKS), pair.ids(_HAZARD_BLOCKS)
    pair.target.ask("fill", pair.name, sources, 1)
    pair.target.ask("fill_late", pair.name, sources, 2, _STEP_MS, own_stream)
    pulled = pair.pull(sources, targets)
    spoilt = pair.cache.wrong(targets, sources, salt=2)
    pair.target.ask("fill", pair.name, sources, 0)
    return {
        "case": "early read",
        "engine_stream": "own" if own_stream else "default",
        "fence": False,
        "pull_ms": round(pulled.seconds * 1e3, 1),
        "spoilt_blocks": spoilt,
        "must_be_spoilt": own_stream,
    }
