"""Which instances hold how much of the beginning of a prompt, as far as a front end knows.

Each instance tells what its table has (`control/prefix_table.py`): changes, and everything now and then. What this
front end has just sent counts as held until the instance's reports count it (the dispatcher's ledger says when): by
then the instance has told of it itself. Sets of instances are numbers, a bit for each, so that a look costs a step for
each chunk and not for each instance.
"""

from __future__ import annotations

from collections.abc import Sequence

from llumnix.control.prefix_table import PrefixNews
from llumnix.policy.prefix import ChunkId
from llumnix.types import InstanceId

UNHEARD = -2
"""No news follow upon it."""


class _Holder:
    """One instance."""

    __slots__ = ("bit", "heard", "held", "sent")

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self.heard = 0
        """Number of its last news; `UNHEARD` if something is missing since."""
        self.held: set[ChunkId] = set()
        self.sent: dict[ChunkId, int] = {}
        """Of requests that are on their way there."""


class PrefixIndex:
    def __init__(self) -> None:
        self._holders: dict[InstanceId, _Holder] = {}
        self._by_place: list[InstanceId | None] = []
        self._bits: dict[ChunkId, int] = {}

    def hear(self, instance: InstanceId, news: PrefixNews) -> bool:
        """False, once: something is missing before it, so that nothing is known of the instance until it tells
        everything; it is to be asked to."""
        holder = self._holder(instance)
        if news.whole:
            self._forget(holder, holder.held - set(news.added))
        elif news.number != holder.heard + 1:
            is_first, holder.heard = holder.heard != UNHEARD, UNHEARD
            self._forget(holder, set(holder.held))
            return not is_first
        holder.heard = news.number
        self._forget(holder, holder.held.intersection(news.removed))
        holder.held.update(news.added)
        for chunk in news.added:
            self._bits[chunk] = self._bits.get(chunk, 0) | holder.bit
        return True

    def sent(self, instance: InstanceId, ids: Sequence[ChunkId]) -> None:
        """A request that begins so is on its way there."""
        if not ids:
            return
        holder, bits = self._holder(instance), self._bits
        sent, bit = holder.sent, holder.bit
        for chunk in ids:
            sent[chunk] = sent.get(chunk, 0) + 1
            known = bits.get(chunk, 0)
            if not known & bit:
                bits[chunk] = known | bit

    def counted(self, instance: InstanceId, ids: Sequence[ChunkId]) -> None:
        """What is known of it the instance says from now on."""
        if not ids:
            return
        holder = self._holder(instance)
        for chunk in ids:
            left = holder.sent.pop(chunk, 0) - 1
            if left > 0:
                holder.sent[chunk] = left
            else:
                self._clear(holder, chunk)

    def depths(self, ids: Sequence[ChunkId]) -> dict[InstanceId, int]:
        """Of the instances that hold the first chunk: how many of the first ones each holds, the fewest first."""
        depths: dict[InstanceId, int] = {}
        bits, left = self._bits, -1
        for depth, chunk in enumerate(ids):
            still = left & bits.get(chunk, 0)
            if still != left:
                if depth:
                    self._end(left ^ still, depth, depths)
                left = still
                if not left:
                    return depths
        if ids:
            self._end(left, len(ids), depths)
        return depths

    def remove(self, instance: InstanceId) -> None:
        """It is gone for good."""
        holder = self._holders.pop(instance, None)
        if holder is not None:
            known = holder.held | set(holder.sent)
            holder.sent.clear()
            self._forget(holder, known)
            self._by_place[holder.bit.bit_length() - 1] = None

    def _holder(self, instance: InstanceId) -> _Holder:
        holder = self._holders.get(instance)
        if holder is None:
            if None not in self._by_place:
                self._by_place.append(None)
            place = self._by_place.index(None)
            self._by_place[place] = instance
            holder = self._holders[instance] = _Holder(1 << place)
        return holder

    def _end(self, bits: int, depth: int, depths: dict[InstanceId, int]) -> None:
        names = self._by_place
        while bits:
            place = bits.bit_length() - 1
            bits ^= 1 << place
            instance = names[place]
            assert instance is not None
            depths[instance] = depth

    def _forget(self, holder: _Holder, ids: set[ChunkId]) -> None:
        holder.held.difference_update(ids)
        for chunk in ids:
            self._clear(holder, chunk)

    def _clear(self, holder: _Holder, chunk: ChunkId) -> None:
        if chunk in holder.held or chunk in holder.sent:
            return
        left = self._bits.get(chunk, 0) & ~holder.bit
        if left:
            self._bits[chunk] = left
        else:
            self._bits.pop(chunk, None)
