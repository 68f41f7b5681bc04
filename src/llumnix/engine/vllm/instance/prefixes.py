"""What the engine's prefix cache holds, by the names that front ends know prompts by (`control/prefix_table.py`)."""

from __future__ import annotations

from collections.abc import Hashable
from time import monotonic
from typing import Any, cast

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import BlockHash
from vllm.v1.kv_cache_interface import is_full_attention_spec
from vllm.v1.request import Request

from llumnix.control.prefix_table import SWEEP_S, Chunk, PrefixNews, PrefixTable
from llumnix.engine.vllm.between import chunks_of
from llumnix.engine.vllm.instance.state import passport_of
from llumnix.engine.vllm.instance.state_blocks import is_state
from llumnix.policy.prefix import cached_tokens
from llumnix.types import RequestId

USUAL_CHUNK_TOKENS = 512
SHORT_WINDOW_TOKENS = 8192
"""Models with less are asked shorter things, so chunks are of a few blocks there."""

BLOCKS_OF_SHORT = 4


class Prefixes:
    """Called on the engine's main thread, but for `name`.

    Relies on `Request.block_hashes` naming, block by block, what the cache is asked for, and on vLLM's freeing the
    blocks of a request from the last to the first: where the end of a chunk is cached, the chunk is.

    Chunks are told, and forgotten, by the groups that keep whole prompts alone. Others keep a state here and there, or
    give blocks back as their window moves on: a conversation goes on from its last one, though most chunks end at none.
    With how much another prompt begins depends there on where it parts, which names of chunks do not say.
    """

    def __init__(self, manager: KVCacheManager, hash_tokens: int, chunk_tokens: int) -> None:
        """`hash_tokens`: of a block that has a hash of its own; `chunk_tokens`: whole ones of these."""
        self.chunk_tokens = chunk_tokens
        self._hash_tokens = hash_tokens
        self._pool, self._coordinator = manager.block_pool, manager.coordinator
        managers = self._coordinator.single_type_managers
        self._groups = [group for group, each in enumerate(managers) if is_full_attention_spec(each.kv_cache_spec)]
        self._is_hybrid = len(self._groups) < len(managers)
        """Groups that keep windows or states have a say, too: a request begins with less where they have less."""
        self._has_states = any(is_state(each) for each in managers)
        """Nobody knows where in a prompt that is to come one will be kept."""
        self._table = PrefixTable(self._is_cached)
        self._swept_s = 0.0

    def name(self, request: Request) -> None:
        """Names its prompt. From any thread: takes a while for a long one."""
        passport = passport_of(request)
        passport.chunks = chunks_of(passport.original, self.chunk_tokens)

    def comes(self, request: Request) -> None:
        """It is about to be queued here; its passport is told what of it is cached, and what it will find computed."""
        passport = passport_of(request)
        depths = self._table.comes(RequestId(request.request_id), self._named(request, passport.chunks))
        if request.skip_reading_prefix_cache:
            return  # others begin with what it computes
        passport.cached_tokens = self._cached_tokens(request, depths.cached)
        coming = 0 if self._has_states else cached_tokens(depths.coming, self.chunk_tokens, request.num_prompt_tokens)
        passport.expected_hit_tokens = max(passport.cached_tokens, coming)

    def holds(self, request: Request) -> None:
        """All of its tokens but the newest are computed here, those that it made included: they begin the next turn."""
        self._table.holds(self._all_of(request))

    def ended(self, request: Request) -> None:
        """What it made begins the next turn where it is cached: not that of one that was still to be computed, or to be
        confirmed."""
        if request.num_tokens // self.chunk_tokens > len(passport_of(request).chunks):
            self._table.holds(chunk for chunk in self._all_of(request) if self._is_cached(chunk.key))

    def news(self, requests: dict[str, Request]) -> PrefixNews | None:
        """For the front ends. `requests`: all that are here."""
        now_s = monotonic()
        if now_s >= self._swept_s + SWEEP_S:
            self._swept_s = now_s
            self._table.sweep(lambda name: name in requests and _is_coming(requests[name]))
        return self._table.news()

    def everything(self) -> PrefixNews:
        return self._table.everything()

    def _all_of(self, request: Request) -> list[Chunk]:
        """Of its prompt, and of what it has made."""
        passport = passport_of(request)
        ids = chunks_of(passport.original, self.chunk_tokens, request.all_token_ids, passport.chunks)
        return self._named(request, ids)

    def _named(self, request: Request, ids: tuple[int, ...]) -> list[Chunk]:
        """With the hash of each chunk's last block."""
        blocks = self.chunk_tokens // self._hash_tokens
        ends = request.block_hashes[blocks - 1 :: blocks]
        return [Chunk(name, end) for name, end in zip(ids, ends, strict=False)]

    def _cached_tokens(self, request: Request, chunks: int) -> int:
        """`chunks`: the first ones that are cached, where whole prompts are kept and nothing else."""
        if not self._is_hybrid:
            return cached_tokens(chunks, self.chunk_tokens, request.num_prompt_tokens)
        _, hit_tokens, _ = self._coordinator.find_longest_cache_hit(request.block_hashes, request.num_tokens - 1)
        return min(hit_tokens, request.num_prompt_tokens)

    def _is_cached(self, key: Hashable) -> bool:
        return self._pool.get_cached_block(cast("BlockHash", key), self._groups) is not None


def _is_coming(request: Request) -> bool:
    return request.num_computed_tokens < request.num_prompt_tokens


def prefixes_of(scheduler: Any, wanted: bool, chunk_tokens: int) -> Prefixes | None:
    """Of an engine that keeps prefixes of whole prompts; None of another one, or if nobody wants to know.
    `chunk_tokens`: as configured, 0 for what suits the model."""
    manager: KVCacheManager = scheduler.kv_cache_manager
    managers = manager.coordinator.single_type_managers
    if not wanted or not manager.enable_caching or not any(is_full_attention_spec(m.kv_cache_spec) for m in managers):
        return None
    block_tokens = scheduler.block_size
    usual = USUAL_CHUNK_TOKENS if scheduler.max_model_len >= SHORT_WINDOW_TOKENS else BLOCKS_OF_SHORT * block_tokens
    blocks = -(-(chunk_tokens or usual) // block_tokens)
    return Prefixes(manager, scheduler.hash_block_size, blocks * block_tokens)
