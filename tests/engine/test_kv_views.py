"""Which bytes of the KV cache are a block's: of all layers, whoever comes first in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.worker.utils import allocate_kv_cache

from llumnix.engine.vllm.instance.kv_views import kv_views

BLOCKS = 6
FULL = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=8, dtype=torch.float32)
PAGE = FULL.page_size_bytes
NARROW = SlidingWindowSpec(
    block_size=16, num_kv_heads=1, head_size=12, dtype=torch.float32, sliding_window=64, page_size_padded=PAGE
)
STATE = MambaSpec(block_size=64, shapes=((5, 7),), dtypes=(torch.float32,), page_size_padded=PAGE)


def _runner(*groups: Any, layout: KVCacheLayout = KVCacheLayout.LBHNC) -> Any:
    """A group of two layers for each of these, all laid over each other in memory, as vLLM does it."""
    outermost = layout.is_block_outermost
    names = [[f"layers.{2 * group}", f"layers.{2 * group + 1}"] for group in range(len(groups))]
    config = KVCacheConfig(
        num_blocks=BLOCKS,
        kv_cache_tensors=[
            KVCacheTensor(
                size=2 * PAGE * BLOCKS,
                layers=layers,
                layer_stride=PAGE if outermost else PAGE * BLOCKS,
                block_stride=2 * PAGE if outermost else PAGE,
            )
            for layers in names
        ],
        kv_cache_groups=[KVCacheGroupSpec(layers, spec) for layers, spec in zip(names, groups, strict=True)],
    )
    caches = allocate_kv_cache(config, torch.device("cpu"), layout)
    return SimpleNamespace(kv_caches=list(caches.values()), kv_cache_config=config)


@pytest.mark.parametrize("layout", [KVCacheLayout.LBHNC, KVCacheLayout.LBNHC, KVCacheLayout.BLNHC], ids=str)
@pytest.mark.parametrize("groups", [(FULL,), (STATE,), (STATE, FULL), (FULL, STATE), (NARROW, FULL)])
def test_a_copied_block_has_all_that_any_layer_keeps_there(groups: tuple[Any, ...], layout: KVCacheLayout) -> None:
    here, there = _runner(*groups, layout=layout), _runner(*groups, layout=layout)
    for number, layer in enumerate(here.kv_caches):
        layer[:] = 3 + number  # whoever is last in memory: a block belongs to one group
        for ours, theirs in zip(kv_views(there), kv_views(here), strict=True):
            ours[4] = theirs[1]
        assert torch.equal(there.kv_caches[number][4], layer[1])
        assert not there.kv_caches[number][3].any()


def test_layers_that_share_a_place_are_one_region() -> None:
    assert len(kv_views(_runner(STATE, FULL, FULL))) == 2


@pytest.mark.parametrize("name", ["LBHNC", "LBNHC", "BLHNC", "BLNHC"])
def test_a_block_is_as_few_runs_of_bytes_as_the_layout_allows(name: str) -> None:
    layout = KVCacheLayout[name]
    views = kv_views(_runner(FULL, layout=layout))
    assert len(views) == (1 if layout.is_block_outermost else 2)
    assert sum(view[0].nbytes for view in views) == 2 * PAGE
    assert all(view[0].is_contiguous() for view in views)
