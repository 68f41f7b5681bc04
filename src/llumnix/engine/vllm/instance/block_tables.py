"""Which blocks requests hold, by tokens, over all KV groups; and blocks that are pinned while others read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vllm.utils.math_utils import cdiv
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import KVCacheBlock


class BlockTables:
    """A range of blocks is one of `block_tokens` tokens each. Groups may have block sizes of their own, all multiples
    or divisors of that."""

    def __init__(self, manager: KVCacheManager, block_tokens: int, group_block_tokens: Sequence[int]) -> None:
        self.pinned = 0
        self._manager = manager
        self._block_tokens = block_tokens
        self._group_block_tokens = group_block_tokens

    def held(self, request_id: str) -> Iterator[KVCacheBlock]:
        for table in self._manager.get_blocks(request_id).blocks:
            yield from (block for block in table if not block.is_null)

    def ids(self, request_id: str, first_block: int, blocks: int) -> list[int]:
        """All groups one after another; 0 (vLLM's null block) where a sliding window has left the block behind."""
        ids: list[int] = []
        tables = self._manager.get_block_ids(request_id)
        for table, (first, last) in zip(tables, self._ranges(first_block, blocks), strict=True):
            part = table[first:last]
            ids.extend(part)
            ids.extend([0] * (last - first - len(part)))
        return ids

    def pin(self, request_id: str, first_block: int, blocks: int) -> list[KVCacheBlock]:
        """Keeps blocks from being reused until `unpin`, whatever becomes of the request."""
        held: list[KVCacheBlock] = []
        tables = self._manager.get_blocks(request_id).blocks
        for table, (first, last) in zip(tables, self._ranges(first_block, blocks), strict=True):
            held.extend(block for block in table[first:last] if not block.is_null)
        self._manager.block_pool.touch(held)
        self.pinned += len(held)
        return held

    def unpin(self, held: list[KVCacheBlock]) -> None:
        self._manager.block_pool.free_blocks(reversed(held))
        self.pinned -= len(held)

    def _ranges(self, first_block: int, blocks: int) -> Iterator[tuple[int, int]]:
        """In each group's own blocks."""
        for size in self._group_block_tokens:
            yield (
                first_block * self._block_tokens // size,
                cdiv((first_block + blocks) * self._block_tokens, size),
            )
