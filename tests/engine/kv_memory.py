"""vLLM's own manager of KV blocks, for blocks of several kinds."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, MambaSpec

WINDOW_TOKENS = 1024
SHAPE: dict[str, Any] = {"block_size": 16, "num_kv_heads": 2, "head_size": 8, "dtype": torch.float32}
FULL = FullAttentionSpec(**SHAPE)
STATE = MambaSpec(block_size=WINDOW_TOKENS, shapes=((8, 8),), dtypes=(torch.float32,))


def kv_manager(
    *specs: Any,
    blocks: int = 100,
    in_flight_tokens: int | None = None,
    context_parallel: int = 1,
    hash_tokens: int = 0,
) -> KVCacheManager:
    """`in_flight_tokens`: that steps compute at once, at most; None: a whole window. `hash_tokens`: of a block by which
    prefixes are cached; 0: none are."""
    groups = [KVCacheGroupSpec([f"layer {n}"], spec) for n, spec in enumerate(specs)]
    return KVCacheManager(
        KVCacheConfig(blocks, [], groups),
        max_model_len=WINDOW_TOKENS,
        max_in_flight_tokens=in_flight_tokens,
        scheduler_block_size=hash_tokens or WINDOW_TOKENS,
        hash_block_size=hash_tokens or WINDOW_TOKENS,
        enable_caching=hash_tokens > 0,
        dcp_world_size=context_parallel,
    )
