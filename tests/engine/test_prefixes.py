"""What of a prompt an instance has cached, or will have computed by then, and who starts first by it."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from engine_requests import engine_request
from kv_memory import FULL, SHAPE, kv_manager
from small_engine import BLOCK_TOKENS, SmallEngine
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import KVCacheSpec, MambaSpec, SlidingWindowSpec
from vllm.v1.request import Request, RequestStatus

from llumnix.config import PolicyConfig
from llumnix.engine.vllm.between import chunks_of
from llumnix.engine.vllm.instance import prefixes
from llumnix.engine.vllm.instance.prefixes import Prefixes, prefixes_of
from llumnix.engine.vllm.instance.state import Passport, passport_of, stamp
from llumnix.policy.prefix import ChunkId

CONTEXT = [1] * 3 * BLOCK_TOKENS
WINDOW = SlidingWindowSpec(**SHAPE, sliding_window=2 * BLOCK_TOKENS)
STATES = MambaSpec(block_size=BLOCK_TOKENS, shapes=((8, 8),), dtypes=(torch.float32,), mamba_cache_mode="align")


@pytest.fixture
def engine() -> Iterator[SmallEngine]:
    """Its chunks are of one block."""
    made = SmallEngine(prefix_caching=True)
    made.scheduler.obey(PolicyConfig())
    made.scheduler.prefixes = prefixes_of(made.scheduler, wanted=True, chunk_tokens=BLOCK_TOKENS)
    yield made
    made.close()


def make(engine: SmallEngine, name: str, prompt: list[int], output_tokens: int = 500, **asked: Any) -> Request:
    """As the engine core does."""
    engine.arrives_s += 1.0
    sampling = SamplingParams(max_tokens=output_tokens, ignore_eos=True, **asked)
    original = engine_request(name, prompt_token_ids=prompt, sampling_params=sampling, arrival_time=engine.arrives_s)
    request = Request.from_engine_core_request(original, engine.hasher)
    stamp(request, original)
    assert engine.scheduler.prefixes is not None
    engine.scheduler.prefixes.name(request)
    return request


def add(engine: SmallEngine, name: str, prompt: list[int], output_tokens: int = 500, **asked: Any) -> Passport:
    request = make(engine, name, prompt, output_tokens, **asked)
    engine.scheduler.add_request(request)
    return passport_of(request)


def waiting(engine: SmallEngine) -> list[str]:
    return [request.request_id for request in engine.scheduler.waiting]


def told(engine: SmallEngine) -> set[ChunkId]:
    """By the first news."""
    assert engine.scheduler.prefixes is not None
    news = engine.scheduler.prefixes.news(engine.scheduler.requests)
    assert news is not None
    return set(news.added)


def is_computed(engine: SmallEngine, prompt: list[int]) -> None:
    """By one that has ended."""
    add(engine, "before", prompt, output_tokens=1)
    engine.step()
    assert "before" not in engine.scheduler.requests


def fill(engine: SmallEngine) -> None:
    """Eight of the twelve blocks."""
    add(engine, "runs", [9] * (8 * BLOCK_TOKENS - 4))
    engine.step()


def test_who_begins_as_one_that_waits_does_not_overtake_it_nor_a_small_one(engine: SmallEngine) -> None:
    fill(engine)
    add(engine, "first", [*CONTEXT, *CONTEXT, 5, 5, 5, 5])
    add(engine, "small", [2] * 70)
    follows = add(engine, "follows", [*CONTEXT, *CONTEXT, 6, 6, 6, 6])
    assert waiting(engine) == ["small", "first", "follows"]
    assert (follows.cached_tokens, follows.expected_hit_tokens) == (0, 96)
    assert engine.scheduler.waiting.tokens == 100 + 70 + 4, "what waits there has less to compute"


@pytest.mark.parametrize("cached", [True, False])
def test_who_has_much_cached_starts_before_one_that_came_a_little_earlier(engine: SmallEngine, cached: bool) -> None:
    is_computed(engine, [*(CONTEXT if cached else [3] * len(CONTEXT)), 4, 4, 4, 4])
    fill(engine)
    add(engine, "earlier", [5] * 100)
    later = add(engine, "later", [*CONTEXT, *[6] * 52])
    assert later.cached_tokens == (len(CONTEXT) if cached else 0)
    assert waiting(engine) == (["later", "earlier"] if cached else ["earlier", "later"])


def test_preempted_one_has_cached_what_was_still_to_come_when_it_came(engine: SmallEngine) -> None:
    first, follows = add(engine, "first", [*CONTEXT, 5, 5]), add(engine, "follows", [*CONTEXT, 6, 6])
    assert (follows.cached_tokens, follows.expected_hit_tokens) == (0, len(CONTEXT))
    while not engine.preempted:
        engine.step()
    assert engine.preempted == ["follows"]
    assert (first.cached_tokens, follows.cached_tokens) == (0, len(CONTEXT))


def test_queued_one_that_moves_here_is_told_and_finds_what_is_cached_here(engine: SmallEngine) -> None:
    is_computed(engine, [*CONTEXT, 4, 4, 4, 4])
    moved = make(engine, "moved", [*CONTEXT, *[6] * 52])
    engine.scheduler.adopt(moved, computed_tokens=0)
    assert passport_of(moved).cached_tokens == passport_of(moved).expected_hit_tokens == len(CONTEXT)
    assert engine.scheduler.waiting.tokens == 52
    assert set(passport_of(moved).chunks) <= told(engine)
    follows = add(engine, "follows", [*CONTEXT, *[6] * 52])
    assert (follows.cached_tokens, follows.expected_hit_tokens) == (len(CONTEXT), 96)


def test_stream_of_a_dead_instance_is_told_where_it_is_computed_anew(engine: SmallEngine) -> None:
    robbed = make(engine, "robbed", [*CONTEXT, 5, 5])
    robbed.append_output_token_ids([7, 7, 7])
    engine.scheduler.adopt(robbed, computed_tokens=0)
    assert told(engine) == set(passport_of(robbed).chunks)
    follows = add(engine, "follows", [*CONTEXT, 6, 6])
    assert (follows.cached_tokens, follows.expected_hit_tokens) == (0, len(CONTEXT))


def test_one_that_may_not_begin_with_what_is_cached_leaves_its_prompt_to_others(engine: SmallEngine) -> None:
    is_computed(engine, [*CONTEXT, 4, 4, 4, 4])
    asks = add(engine, "asks", [*CONTEXT, *[6] * 52], prompt_logprobs=1)
    assert (asks.cached_tokens, asks.expected_hit_tokens) == (0, 0)
    assert engine.scheduler.waiting.tokens == 100
    follows = add(engine, "follows", [*CONTEXT, *[6] * 52])
    assert (follows.cached_tokens, follows.expected_hit_tokens) == (len(CONTEXT), 96)


def arrives(engine: SmallEngine, name: str, output_tokens: int) -> Request:
    """With its KV, as nobody has confirmed yet."""
    scheduler = engine.scheduler
    request = make(engine, name, CONTEXT)
    request.append_output_token_ids([7] * output_tokens)
    assert scheduler.reserve(request, blocks=-(-request.num_tokens // BLOCK_TOKENS)) == 0
    scheduler.adopt(request, computed_tokens=request.num_tokens - 1)
    engine.step()
    assert engine.running == [name]
    return request


def test_prompt_of_one_that_is_preempted_before_it_is_confirmed_is_told_as_it_is_computed_here(
    engine: SmallEngine,
) -> None:
    arrived = arrives(engine, "arrived", output_tokens=2)
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert engine.scheduler.preemptions == 1
    assert told(engine) == set(passport_of(arrived).chunks)
    follows = add(engine, "follows", [*CONTEXT, 6, 6])
    assert (follows.cached_tokens, follows.expected_hit_tokens) == (0, len(CONTEXT))


@pytest.mark.parametrize(
    ("how", "chunks"),
    [("computed here", 4), ("its newest token fills a chunk", 3), ("computed anew", 3), ("not confirmed", 0)],
)
def test_what_one_has_made_is_told_with_its_end_where_it_is_cached(
    engine: SmallEngine, monkeypatch: pytest.MonkeyPatch, how: str, chunks: int
) -> None:
    """Before anything is swept: the prompt of one that is computed anew was told when it came."""
    monkeypatch.setattr(prefixes, "SWEEP_S", inf)
    if how == "not confirmed":
        arrives(engine, "r", output_tokens=2 * BLOCK_TOKENS)
    elif how == "computed anew":
        robbed = make(engine, "r", CONTEXT)
        robbed.append_output_token_ids([7] * 2 * BLOCK_TOKENS)
        engine.scheduler.adopt(robbed, computed_tokens=0)
    else:
        add(engine, "r", CONTEXT)
        for _ in range(BLOCK_TOKENS + (how == "computed here")):
            engine.step()
    request = engine.scheduler.requests["r"]
    engine.scheduler.finish_requests("r", RequestStatus.FINISHED_ABORTED)
    assert engine.scheduler.prefixes is not None
    news = engine.scheduler.prefixes.news(engine.scheduler.requests)
    names = chunks_of(passport_of(request).original, BLOCK_TOKENS, request.all_token_ids)
    assert set(() if news is None else news.added) == set(names[:chunks])


class Hybrid:
    """Prefixes of an engine whose other layers keep `kind`."""

    def __init__(self, kind: KVCacheSpec) -> None:
        init_none_hash(sha256)
        self.manager = kv_manager(FULL, kind, hash_tokens=BLOCK_TOKENS)
        self.prefixes = Prefixes(self.manager, BLOCK_TOKENS, BLOCK_TOKENS)
        self._hasher = get_request_block_hasher(BLOCK_TOKENS, sha256)

    def comes(self, name: str, prompt: list[int]) -> Request:
        original = engine_request(name, prompt_token_ids=prompt)
        request = Request.from_engine_core_request(original, self._hasher)
        stamp(request, original)
        self.prefixes.name(request)
        self.prefixes.comes(request)
        return request

    def compute(self, request: Request) -> None:
        """To its end."""
        assert self.manager.allocate_slots(request, request.num_tokens) is not None
        request.num_computed_tokens = request.num_tokens
        self.manager.free(request)

    def others_throw_away(self, request: Request) -> None:
        """What the other layers have cached of it."""
        pool = self.manager.block_pool
        cached = [pool.get_cached_block(each, [1]) for each in request.block_hashes]
        pool.evict_blocks({block.block_id for blocks in cached for block in blocks or ()})

    def begins_with(self, request: Request) -> int:
        """Tokens, by vLLM's word."""
        _, hit_tokens, _ = self.manager.get_computed_blocks(request)
        return hit_tokens


def test_what_windows_have_lost_is_not_expected_though_whole_prompts_are_kept_beside() -> None:
    hybrid = Hybrid(WINDOW)
    first = hybrid.comes("first", [*CONTEXT, 5, 5])
    hybrid.compute(first)
    same = hybrid.comes("same", [*CONTEXT, 6, 6])
    assert passport_of(same).cached_tokens == hybrid.begins_with(same) == len(CONTEXT)
    hybrid.others_throw_away(first)
    assert hybrid.begins_with(same) == 0
    hybrid.prefixes.news({})  # looks who is still to be computed: nobody
    again = hybrid.comes("again", [*CONTEXT, 7, 7])
    assert passport_of(again).cached_tokens == passport_of(again).expected_hit_tokens == 0


@pytest.mark.parametrize(("kind", "expected"), [(WINDOW, len(CONTEXT)), (STATES, 0)], ids=["windows", "states"])
def test_one_before_it_leaves_windows_behind_and_who_knows_which_states(kind: KVCacheSpec, expected: int) -> None:
    hybrid = Hybrid(kind)
    hybrid.comes("first", [*CONTEXT, 5, 5])
    follows = hybrid.comes("follows", [*CONTEXT, 6, 6])
    assert (passport_of(follows).cached_tokens, passport_of(follows).expected_hit_tokens) == (0, expected)
