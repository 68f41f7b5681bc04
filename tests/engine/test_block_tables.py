"""Ranges of tokens as blocks, over groups whose blocks are of different lengths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("vllm")

from kv_memory import FULL, SHAPE, STATE, WINDOW_TOKENS, kv_manager
from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.kv_cache_interface import SlidingWindowMLASpec, SlidingWindowSpec
from vllm.v1.request import Request

from llumnix.engine.vllm.instance.block_tables import BlockTables

LONG = replace(FULL, block_size=64)
SLIDING = SlidingWindowSpec(**SHAPE, sliding_window=256)


def _request(manager: KVCacheManager, tokens: int) -> str:
    request = Request("r", [1] * tokens, SamplingParams(max_tokens=4), None)
    assert manager.allocate_slots(request, tokens) is not None
    return request.request_id


@pytest.mark.parametrize(
    ("specs", "unit"),
    [((FULL,), 16), ((SLIDING, LONG), 64), ((FULL, LONG), 16), ((LONG, STATE), 64), ((STATE,), WINDOW_TOKENS)],
)
def test_a_block_is_one_of_those_that_grow_with_the_tokens(specs: tuple[Any, ...], unit: int) -> None:
    assert BlockTables(kv_manager(*specs), WINDOW_TOKENS).block_tokens == unit


def test_a_longer_block_belongs_to_each_range_that_has_a_part_of_it() -> None:
    manager = kv_manager(FULL, LONG)
    tables = BlockTables(manager, WINDOW_TOKENS)
    short, long = manager.get_block_ids(_request(manager, 140))
    assert tables.ids("r", 0, 3) == [*short[:3], long[0]]
    assert tables.ids("r", 3, 2) == [*short[3:5], *long[:2]]
    assert tables.ids("r", 8, 1) == [short[8], long[2]]


def test_states_are_in_no_range() -> None:
    manager = kv_manager(FULL, STATE)
    tables = BlockTables(manager, WINDOW_TOKENS)
    tokens, state = manager.get_block_ids(_request(manager, 40))
    assert tables.ids("r", 0, 3) == tokens
    assert [block.block_id for block in tables.states.after("r", 40)] == state
    assert tables.states.after("r", 0) == []
    assert (tables.state_blocks, [block.block_id for block in tables.held("r")]) == (1, [*tokens, *state])


def test_block_that_several_workers_share_counts_the_tokens_of_all() -> None:
    manager = kv_manager(FULL, context_parallel=2)
    tables = BlockTables(manager, WINDOW_TOKENS)
    (ids,) = manager.get_block_ids(_request(manager, 100))
    assert (tables.block_tokens, len(ids)) == (32, 4)
    assert tables.ids("r", 1, 2) == ids[1:3]


def test_prefix_whose_end_would_be_computed_again_is_not_taken_from_others() -> None:
    shape: dict[str, Any] = {**SHAPE, "num_kv_heads": 1, "sliding_window": 256}
    replayed = SlidingWindowMLASpec(**shape, bounded_replay=True)
    kept = SlidingWindowMLASpec(**shape)
    for spec, shared in ((replayed, False), (kept, True)):
        manager = kv_manager(FULL, spec)
        assert BlockTables(manager, WINDOW_TOKENS).may_share(manager.empty_kv_cache_blocks, 32) == shared
    assert not BlockTables(kv_manager(FULL, LONG), WINDOW_TOKENS).may_share(manager.empty_kv_cache_blocks, 16), "a part"
