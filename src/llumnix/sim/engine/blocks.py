"""The KV blocks of one instance: how many are free, and which prefixes are kept for reuse.

`free` counts blocks that can be had at once, cached ones that nobody uses included, as vLLM does. The
prefix cache works in units of the trace's own hash blocks (512 tokens for Mooncake) or a multiple of them, so that a
unit is whole blocks; least recently used first out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from llumnix.sim.engine.request import SimRequest


class BlockPool:
    """Counts blocks. `take` may be asked for more than there is only by a bug, and then raises."""

    __slots__ = ("cache", "free", "total", "watermark")

    def __init__(self, total: int, watermark: int = 0, cache: PrefixCache | None = None) -> None:
        self.total = total
        self.free = total
        self.watermark = watermark
        self.cache = cache

    def take(self, blocks: int) -> None:
        if blocks > self.free:
            raise AssertionError(f"{blocks} blocks were taken, {self.free} are free")
        self.free -= blocks
        if self.cache is not None:
            self.cache.shrink_to(self.free)

    def give_back(self, blocks: int) -> None:
        self.free += blocks
        if self.free > self.total:
            raise AssertionError(f"{self.free} blocks are free of {self.total}")

    def release(self, blocks: int, cached_units: int, hashes: Sequence[int]) -> None:
        """Gives back what a request held, the cached units at the start of its prefix among them."""
        if cached_units:
            assert self.cache is not None
            blocks += self.cache.release(hashes[:cached_units]) - cached_units * self.cache.unit_blocks
        self.give_back(blocks)

    def publish(self, request: SimRequest) -> None:
        """Lends the blocks of its prompt, which is computed, to the cache, as far as they are not shared already."""
        if self.cache is not None:
            units = request.hashes[request.cached_units : request.prompt_tokens // self.cache.unit_tokens]
            request.cached_units += self.cache.publish(units)

    def cached(self, hashes: Sequence[int], tokens: int) -> tuple[int, int]:
        """Of a sequence of so many tokens: the units at its start that need no computing, and the blocks of these."""
        if self.cache is None or not hashes or not tokens:
            return 0, 0
        units = self.cache.hits(hashes, tokens)
        return units, units * self.cache.unit_blocks

    def idle_blocks(self, units: Sequence[int]) -> int:
        """Of these cached units, that are free until somebody uses them."""
        return self.cache.idle_among(units) * self.cache.unit_blocks if self.cache is not None else 0

    def share(self, units: Sequence[int]) -> None:
        """One more uses these cached units."""
        if self.cache is not None:
            self.take(self.cache.use(units))

    def can_admit(self, blocks: int) -> bool:
        """Whether a request from the queue may take so many."""
        return blocks + self.watermark <= self.free


class PrefixCache:
    """Which prefix units are computed, how many requests use each, and in what order idle ones go."""

    __slots__ = ("_idle", "_users", "unit_blocks", "unit_tokens")

    def __init__(self, unit_tokens: int, block_tokens: int) -> None:
        self.unit_tokens = unit_tokens
        self.unit_blocks = unit_tokens // block_tokens
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def has(self, unit: int) -> bool:
        return unit in self._users

    def hits(self, hashes: Sequence[int], tokens: int) -> int:
        """Units at the start of a sequence of `tokens` tokens that need no computing (one token always does)."""
        most = min(len(hashes), (tokens - 1) // self.unit_tokens)
        for count in range(most):
            if hashes[count] not in self._users:
                return count
        return most

    def idle_among(self, hashes: Sequence[int]) -> int:
        """How many of these units nobody uses now, so that using them makes their blocks not free."""
        return sum(1 for unit in hashes if unit in self._idle)

    def use(self, hashes: Sequence[int]) -> int:
        """Marks cached units as used; returns how many blocks stop being free by that."""
        woken = 0
        for unit in hashes:
            self._users[unit] += 1
            if unit in self._idle:
                del self._idle[unit]
                woken += self.unit_blocks
        return woken

    def publish(self, hashes: Sequence[int]) -> int:
        """Adds computed units in order, used by their maker; stops at one that is there already.

        Returns how many were added; from then on their blocks belong to the cache.
        """
        for count, unit in enumerate(hashes):
            if unit in self._users:
                return count
            self._users[unit] = 1
        return len(hashes)

    def release(self, hashes: Sequence[int]) -> int:
        """A user is gone; returns how many blocks became free (and stay cached while they may)."""
        idle = 0
        for unit in reversed(hashes):
            users = self._users[unit] - 1
            self._users[unit] = users
            if users == 0:
                self._idle[unit] = None
                idle += self.unit_blocks
        return idle

    def shrink_to(self, free_blocks: int) -> None:
        """Forgets idle units, least recently used first, until no more than the free blocks are cached."""
        while len(self._idle) * self.unit_blocks > free_blocks:
            unit, _ = self._idle.popitem(last=False)
            del self._users[unit]
