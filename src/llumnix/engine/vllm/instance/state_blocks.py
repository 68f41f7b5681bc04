"""Blocks with a state in them that is overwritten in place: of layers that keep no tokens (Mamba, gated delta networks,
short convolutions). A request has one such block per KV group that counts, however long it is.

Where it stands in the block table depends on vLLM's mode. "none": in column 0, for ever. "align" (with prefix caching):
in the column of the last computed token, among empty ones; earlier columns may be snapshots that others share. Both are
one rule, since in the first mode the group's block is as long as the window.

Where drafts are made, in mode "none", the columns after it are for the states after each draft (last_steps.py). They
mean nothing between two steps, so they are held and not copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import MambaManager, SingleTypeKVCacheManager


def is_state(manager: SingleTypeKVCacheManager) -> TypeGuard[MambaManager]:
    return isinstance(manager, MambaManager)


class StateBlocks:
    """Relies on `MambaManager` (vllm/v1/core/single_type_kv_cache_manager.py): `req_to_blocks` is its block table, and
    what else it remembers of a request in mode "align" is where the last state was. Both model runners look for the
    state of a resumed request in column `(computed tokens - 1) // block_size`."""

    def __init__(self, managers: Sequence[MambaManager], pool: BlockPool) -> None:
        self._managers = managers
        self._pool = pool
        self._aligned = [each for each in managers if each.mamba_cache_mode == "align"]
        self.for_drafts = sum(each.num_speculative_blocks for each in managers)
        """Blocks of a request for the states after each of its drafts."""

    def __len__(self) -> int:
        return len(self._managers)

    def after(self, request_id: str, computed_tokens: int) -> list[KVCacheBlock]:
        """The blocks with the state after so many tokens, all that there are; none if nothing is computed."""
        if not computed_tokens:
            return []
        return [each.req_to_blocks[request_id][(computed_tokens - 1) // each.block_size] for each in self._managers]

    def reserved_ids(self, request_id: str) -> list[int]:
        """Where the state of one that is on its way in will be; empty if it has no blocks yet."""
        held = [self._real(each, request_id) for each in self._managers]
        return [blocks[0].block_id for blocks in held if blocks]

    def are_here(self, hits: KVCacheBlocks, managers: Sequence[SingleTypeKVCacheManager]) -> bool:
        """False if a snapshot among these blocks was made in the last step: vLLM shares it from the next step on.
        `managers`: of all groups."""
        return not any(
            isinstance(each, MambaManager) and blocks and blocks[-1].block_hash in each.cached_blocks_this_step
            for each, blocks in zip(managers, hits.blocks, strict=True)
        )

    def keep_newest(self, request_id: str) -> None:
        """After a reservation was made: what comes before its newest block are snapshots, which nobody may write to."""
        for each in self._aligned:
            self._keep(each, request_id, -1)

    def keep_first(self, request_id: str) -> None:
        """After a reservation has grown: vLLM adds a block for the state at its end, which may never be reached."""
        for each in self._aligned:
            self._keep(each, request_id, 0)

    def place(self, request_id: str, computed_tokens: int) -> None:
        """Puts the state where the next step will look for it."""
        for each in self._aligned:
            (block,) = self._real(each, request_id)
            column = (computed_tokens - 1) // each.block_size
            each.req_to_blocks[request_id][:] = [self._pool.null_block] * column + [block]

    def _keep(self, manager: MambaManager, request_id: str, which: int) -> None:
        real = self._real(manager, request_id)
        if not real:
            return
        kept = real.pop(which)
        self._pool.free_blocks(reversed(real))
        manager.req_to_blocks[request_id][:] = [kept]
        manager.last_state_block_idx.pop(request_id, None)
        manager._checkpoints.pop(request_id, None)

    def _real(self, manager: MambaManager, request_id: str) -> list[KVCacheBlock]:
        return [block for block in manager.req_to_blocks.get(request_id, ()) if not block.is_null]
