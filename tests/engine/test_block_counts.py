"""What requests need, hold and will take, of blocks of all kinds."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

from kv_memory import FULL, SHAPE, STATE, kv_manager
from vllm.sampling_params import SamplingParams
from vllm.v1.kv_cache_interface import ChunkedLocalAttentionSpec, CircularBufferSpec, SlidingWindowSpec
from vllm.v1.request import Request

from llumnix.engine.vllm.instance.block_counts import BlockCounts

IN_FLIGHT_TOKENS = 64
SLIDING = SlidingWindowSpec(**SHAPE, sliding_window=128)
CHUNKED = ChunkedLocalAttentionSpec(**SHAPE, attention_chunk_size=128)
RING = CircularBufferSpec(**{**SHAPE, "block_size": 8})


class Memory:
    """Of one request, which is computed in chunks."""

    def __init__(self, *specs: Any, state_blocks: int = 0) -> None:
        self.manager = kv_manager(*specs, blocks=200, in_flight_tokens=IN_FLIGHT_TOKENS)
        self.counts = BlockCounts(self.manager, 16, state_blocks)
        self.request = Request("r", [1] * 900, SamplingParams(max_tokens=4), None)

    def compute(self, tokens: int) -> None:
        """Up to so many."""
        while (left := tokens - self.request.num_computed_tokens) > 0:
            now = min(left, IN_FLIGHT_TOKENS)
            assert self.manager.allocate_slots(self.request, now) is not None
            self.request.num_computed_tokens += now

    @property
    def held(self) -> int:
        return sum(not block.is_null for table in self.manager.get_blocks("r").blocks for block in table)


KINDS = [
    ((FULL,), 0),
    ((SLIDING,), 0),
    ((FULL, SLIDING, SLIDING), 0),
    ((FULL, CHUNKED), 0),
    ((FULL, RING), 0),
    ((FULL, SLIDING, STATE), 1),
]


@pytest.mark.parametrize(("specs", "state_blocks"), KINDS)
def test_what_is_said_of_a_length_is_what_vllm_takes_for_it(specs: tuple[Any, ...], state_blocks: int) -> None:
    memory = Memory(*specs, state_blocks=state_blocks)
    counts = memory.counts
    for tokens in (10, 120, 200, 400, 900):
        memory.compute(tokens)
        assert 0 <= memory.held - counts.to_hold(tokens) <= IN_FLIGHT_TOKENS // 16 * len(specs)
        memory.compute(tokens + 1)  # what windows have left behind goes with the next step
        assert memory.held == counts.to_hold(tokens + 1) == counts.freed_by("r")
        assert counts.to_come("r", tokens + 1) == 0
        assert counts.to_come("r", tokens) == 0, "what drafts took is not given back"
        more = counts.to_hold(tokens + 17) - memory.held
        assert counts.to_come("r", tokens + 17) == more or (more <= 0 and CHUNKED in specs), "a chunk ends all at once"


@pytest.mark.parametrize(("specs", "state_blocks"), KINDS)
def test_what_is_to_be_free_is_the_most_that_a_request_takes_on_its_way(
    specs: tuple[Any, ...], state_blocks: int
) -> None:
    memory = Memory(*specs, state_blocks=state_blocks)
    most = 0
    for tokens in range(1, 900, IN_FLIGHT_TOKENS):
        memory.compute(tokens)
        most = max(most, memory.held)
        assert most <= memory.counts.to_start(tokens)
    assert memory.counts.to_start(900) <= most + 2 * len(specs)


def test_one_that_has_nothing_yet_takes_all() -> None:
    counts = Memory(FULL, SLIDING).counts
    assert counts.to_come("new", 100) == counts.to_hold(100) == 14
