"""How many blocks requests need, hold, will take and would free, over all KV groups: they take theirs from one pool."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from vllm.utils.math_utils import cdiv
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import (
    CircularBufferManager,
    CrossAttentionManager,
    SingleTypeKVCacheManager,
)

from llumnix.engine.vllm.instance.state_blocks import is_state
from llumnix.policy.demand import demand_blocks


class BlockCounts:
    """Blocks for what an encoder read (cross attention) are left out of what follows from tokens alone.

    Relies on `coordinator.single_type_managers` (vllm/v1/core/kv_cache_coordinator.py): on `req_to_blocks`, whose
    tables begin with null blocks for what a window has left behind, go on with those of a shared prefix, and end with
    the request's own; and on `max_admission_blocks_per_request`, what admission asks for at most.
    """

    def __init__(self, manager: KVCacheManager, block_tokens: int, state_blocks: int) -> None:
        """`block_tokens`: of a block where no group grows with the tokens. `state_blocks`: of each request beside those
        of its tokens."""
        self._managers = manager.coordinator.single_type_managers
        self._growing = tuple(each for each in self._managers if _grows(each))
        self._block_tokens = block_tokens
        self.fixed_blocks = state_blocks + sum(isinstance(each, CircularBufferManager) for each in self._managers)
        """Of each request, however long it is."""
        kinds = tuple((each.block_size, each.max_admission_blocks_per_request or 0) for each in self._growing)
        self.kv_groups = () if kinds == ((block_tokens, 0),) else kinds
        """As a report tells of them (`policy/snapshot.py`)."""

    def to_start(self, tokens: int) -> int:
        """That are to be free for a request of so many tokens that has none, as vLLM's admission counts them: prompts
        are computed in chunks, and more is in memory until a window has moved on."""
        return demand_blocks(tokens, self._block_tokens, self.fixed_blocks, self.kv_groups)

    def to_hold(self, tokens: int) -> int:
        """That one of so many tokens holds between two steps."""
        if not self._growing:
            return cdiv(tokens, self._block_tokens) + self.fixed_blocks
        return sum(_held(each, tokens) for each in self._growing) + self.fixed_blocks

    def to_come(self, request_id: str, tokens: int) -> int:
        """That it takes beyond those that it has, until it has so many tokens. Where a window moves on, as many become
        free."""
        more = 0
        for each in self._growing:
            table = each.req_to_blocks.get(request_id, ())
            more += max(0, _held(each, tokens) - len(table) + _left_behind(table))
        return more

    def freed_by(self, request_id: str) -> int:
        """That become free when it ends: those that nobody shares, and nobody reads."""
        tables = [each.req_to_blocks.get(request_id, ()) for each in self._managers]
        return sum(len(table) - bisect_left(table, True, key=_is_its_own) for table in tables)


def _grows(manager: SingleTypeKVCacheManager) -> bool:
    """Its blocks are those of a request's tokens."""
    return not (is_state(manager) or isinstance(manager, CrossAttentionManager | CircularBufferManager))


def _held(manager: SingleTypeKVCacheManager, tokens: int) -> int:
    """Of one group, that one of so many tokens holds between two steps."""
    return cdiv(tokens, manager.block_size) - manager.get_num_skipped_tokens(max(0, tokens - 1)) // manager.block_size


def _left_behind(table: Sequence[KVCacheBlock]) -> int:
    if not table or not table[0].is_null:
        return 0
    return bisect_left(table, True, key=lambda block: not block.is_null)


def _is_its_own(block: KVCacheBlock) -> bool:
    return not block.is_null and block.ref_cnt == 1
