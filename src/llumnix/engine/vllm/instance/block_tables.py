"""Which blocks requests hold, by tokens, over all KV groups; and blocks that are pinned while others read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm.utils.math_utils import cdiv
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.kv_cache_interface import is_full_attention_spec
from vllm.v1.request import Request

from llumnix.engine.vllm.instance.state_blocks import StateBlocks, is_state
from llumnix.engine.vllm.instance.unconfirmed import Unconfirmed


@dataclass(frozen=True, slots=True)
class Layout:
    """Ids of the blocks of one request, as its tables were at some time. May be read by any thread."""

    tables: Sequence[list[int]]
    """By KV group."""
    sizes: Sequence[tuple[int, int]]
    """The groups that grow with the tokens, and the tokens of a block of each."""
    block_tokens: int

    def ids(self, first_block: int, blocks: int) -> list[int]:
        """All groups one after another; 0 (vLLM's null block) where a sliding window has left the block behind."""
        ids: list[int] = []
        for group, first, last in _ranges(self.sizes, self.block_tokens, first_block, blocks):
            part = self.tables[group][first:last]
            ids.extend(part)
            ids.extend([0] * (last - first - len(part)))
        return ids

    def reaches(self, end_block: int) -> bool:
        """Whether all before it is in the tables."""
        ranges = _ranges(self.sizes, self.block_tokens, 0, end_block)
        return all(last <= len(self.tables[group]) for group, _, last in ranges)

    def after(self, first_block: int) -> Iterator[int]:
        """All ids from there on, but the null block's."""
        for group, first, _ in _ranges(self.sizes, self.block_tokens, first_block, 0):
            yield from filter(None, self.tables[group][first:])


def _ranges(
    sizes: Sequence[tuple[int, int]], block_tokens: int, first_block: int, blocks: int
) -> Iterator[tuple[int, int, int]]:
    """Groups that grow with the tokens, and the range in each one's own blocks."""
    for group, size in sizes:
        yield group, first_block * block_tokens // size, cdiv((first_block + blocks) * block_tokens, size)


class BlockTables:
    """A range of blocks is one of `block_tokens` tokens each. Groups may have block sizes of their own: a larger block
    belongs to every range that has a part of it, and is copied again with each until it is full.

    Groups whose blocks hold a state instead of tokens (`states`) are not in any range.

    Relies on `coordinator.single_type_managers` (vllm/v1/core/kv_cache_coordinator.py), whose block sizes count the
    tokens of all workers that a block is spread over.
    """

    def __init__(self, manager: KVCacheManager, whole_block_tokens: int) -> None:
        """`whole_block_tokens`: vLLM's, a multiple of all block sizes; counts where there is nothing else to count."""
        self.pinned = 0
        self.unconfirmed = Unconfirmed(manager)
        self._manager = manager
        self._managers = manager.coordinator.single_type_managers
        self._groups = [group for group, each in enumerate(self._managers) if not is_state(each)]
        self.states = StateBlocks([each for each in self._managers if is_state(each)], manager.block_pool)
        sizes = [self._managers[group].block_size for group in self._groups]
        self._sizes = tuple(zip(self._groups, sizes, strict=True))
        full = [each.block_size for each in self._managers if is_full_attention_spec(each.kv_cache_spec)]
        self.block_tokens = min(full or sizes or [manager.max_model_len if self.states else whole_block_tokens])
        self.state_blocks = len(self.states) + self.states.for_drafts - (1 if self.states and not sizes else 0)
        """Blocks that a request holds beyond those of its tokens, however long it is."""
        self._all_share = all(each.kv_cache_spec.prefix_cacheable for each in self._managers)
        self._zeroes = manager.kv_cache_config.needs_kv_cache_zeroing

    def held(self, request_id: str) -> Iterator[KVCacheBlock]:
        for table in self._manager.get_blocks(request_id).blocks:
            yield from (block for block in table if not block.is_null)

    def layout(self, request_id: str) -> Layout:
        """As its tables are now."""
        return Layout(self._manager.get_block_ids(request_id), self._sizes, self.block_tokens)

    def ids(self, request_id: str, first_block: int, blocks: int) -> list[int]:
        """See `Layout`."""
        return self.layout(request_id).ids(first_block, blocks)

    def pin(self, request_id: str, first_block: int, blocks: int, state_tokens: int = 0) -> list[KVCacheBlock]:
        """Keeps blocks from being reused until `unpin`, whatever becomes of the request; those with its state after
        `state_tokens` tokens, too, if that is to be copied."""
        held: list[KVCacheBlock] = []
        tables = self._manager.get_blocks(request_id).blocks
        for group, first, last in _ranges(self._sizes, self.block_tokens, first_block, blocks):
            held.extend(block for block in tables[group][first:last] if not block.is_null)
        held.extend(self.states.after(request_id, state_tokens))
        self._manager.block_pool.touch(held)
        self.pinned += len(held)
        return held

    def unpin(self, held: list[KVCacheBlock]) -> None:
        self._manager.block_pool.free_blocks(reversed(held))
        self.pinned -= len(held)

    def extend(self, request: Request, tokens: int, *, watermark: bool) -> bool:
        """Gives it blocks for so many tokens, to be written from outside; False when there is no room. `watermark`:
        vLLM's stays free, as where one is let in beside others."""
        limit = min(tokens, self._manager.max_model_len)
        blocks = self._manager.allocate_slots(request, limit, delay_cache_blocks=True, has_scheduled_reqs=watermark)
        self.keep_from_zeroing(request.request_id)
        return blocks is not None

    def may_share(self, hits: KVCacheBlocks, tokens: int) -> bool:
        """Whether a request that arrives can do with these blocks of others for its first tokens.

        Not if one is shared in part, which vLLM copies in the next step, over what came from elsewhere; nor where
        vLLM computes the last tokens of a hit again, since a group does not keep them (`prefix_replay_tokens`).
        """
        whole = all(tokens % each.block_size == 0 for each in self._managers)
        return whole and self._all_share and bool(self._groups) and self.states.are_here(hits, self._managers)

    def keep_from_zeroing(self, request_id: str) -> None:
        """Blocks that are about to be written from outside must not be zeroed by the next step, as vLLM does with new
        ones that it may read before they are full; nor those that are freed before it: it may come when somebody else
        who arrives has them."""
        if self._zeroes and any(each.new_block_ids for each in self._managers):
            held = {block.block_id for block in self.held(request_id)}
            for each in self._managers:
                each.new_block_ids = [block for block in each.new_block_ids if block not in held]

    def freed(self, request_id: str) -> None:
        """Before its blocks are given back."""
        self.keep_from_zeroing(request_id)
        self.unconfirmed.ended(request_id)

    def zero_after(self, request_id: str, tokens: int) -> None:
        """Nothing was written into the blocks after these tokens: the next step is to zero them after all."""
        if not self._zeroes:
            return
        for group in self._groups:
            each = self._managers[group]
            rest = each.req_to_blocks[request_id][cdiv(tokens, each.block_size) :]
            each.new_block_ids.extend(block.block_id for block in rest if not block.is_null)
