"""What a target notices when the source that it reads is killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import torch

from gpu.ends import CacheKind, Target
from gpu.rows import Row

_KILLED_AFTER_S = 0.02
_FREE_WITHIN_S = 5.0


def death(target: Target, blocks: int) -> Iterator[Row]:
    """How soon the pull is told, and whether the target's own memory and device are as they were. The last part: there
    is no source afterwards. On a GPU the source is read on the device, where a mapping outlives its owner, or not."""
    on_device = target.setting.device.type == "cuda"
    with target.opened(CacheKind(blocks=blocks, layout="LBNHC", on_device=on_device)) as pair:
        count = pair.blocks_of(2048)
        own = pair.ids(1)
        pair.cache.fill(own, salt=3)
        others = [block for block in pair.ids(count) if block not in own]
        free_before = _free_bytes(target.setting.device)
        threading.Timer(_KILLED_AFTER_S, target.source.kill).start()
        start = time.perf_counter()
        pulled = pair.try_to_pull(others, others)
        while pulled.ended.ok:
            pulled = pair.try_to_pull(others, others)
        told_s = time.perf_counter() - start - _KILLED_AFTER_S
        target.source.join(10)
        pair.transport.forget(pair.address)
        row: Row = {
            "way": "on the device" if on_device else "by socket",
            "told_after_ms": round(told_s * 1e3, 1),
            "reason": pulled.ended.reason,
            "wrong_blocks": pair.cache.wrong(own, own, salt=3),
            "context_lives": float(torch.ones(1, device=target.setting.device).item()) == 1.0,
        }
        if on_device:
            wanted = free_before + blocks * pair.block_bytes // 2
            row["memory_is_free"] = _comes_free(target.setting.device, wanted)
        yield row


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _comes_free(device: torch.device, wanted: int) -> bool:
    """Whether the dead one's memory can be had again: a mapping that is still open might hold it."""
    until = time.monotonic() + _FREE_WITHIN_S
    while _free_bytes(device) < wanted:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
