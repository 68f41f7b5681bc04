"""How many blocks so many tokens take on an instance, and the other way round, whatever kinds of blocks it has."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import gcd

from llumnix.policy.snapshot import InstanceSnapshot

ANY_LENGTH = 1 << 62
"""Tokens of the longest prompt where no length is too long."""


def queued_demand_blocks(prompt_tokens: int, instance: InstanceSnapshot) -> int:
    """Blocks that a request will ask for there when it leaves the queue."""
    return demand_blocks(prompt_tokens, instance.block_tokens, instance.state_blocks, instance.kv_groups)


def demand_blocks(
    prompt_tokens: int, block_tokens: int, state_blocks: int, kv_groups: Sequence[tuple[int, int]]
) -> int:
    """The same of an instance of which a report would say so."""
    tokens = max(1, prompt_tokens)
    if not kv_groups:
        return -(-tokens // block_tokens) + state_blocks
    return sum([min(-(-tokens // size), most or tokens) for size, most in kv_groups]) + state_blocks


def longest_prompt_tokens(blocks: int, instance: InstanceSnapshot) -> int:
    """The other way round: of the longest prompt that asks for no more than so many blocks; below 0 if none does.
    `ANY_LENGTH` where all kinds of blocks are of windows that fit: what a window has left behind is free again."""
    kinds = instance.kv_groups
    if not kinds:
        return (blocks - instance.state_blocks) * instance.block_tokens if blocks > instance.state_blocks else -1
    if all(most for _, most in kinds) and sum(most for _, most in kinds) + instance.state_blocks <= blocks:
        return ANY_LENGTH
    step = gcd(*(size for size, _ in kinds))
    # A longer one than this takes more in a kind that has no most, or the most in all kinds.
    lengths = range(1, blocks * max(size for size, _ in kinds) // step + 1)
    fit = bisect_right(lengths, blocks, key=lambda length: queued_demand_blocks(length * step, instance))
    return fit * step if fit else -1


def tokens_in(blocks: int, instance: InstanceSnapshot) -> int:
    """Of a request that takes so many blocks there. If it may be of any length, those that its windows hold."""
    longest = longest_prompt_tokens(blocks, instance)
    if longest == ANY_LENGTH:
        return max(size * most for size, most in instance.kv_groups)
    return max(0, longest)
