"""The instances that take requests, sorted by the rank that the dispatch rule gives them.

A report or a dispatch moves one entry (O(log n) comparisons), a decision reads the first few.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from llumnix.control.known_instance import KnownInstance, RankKey
from llumnix.policy.dispatch import DispatchRule
from llumnix.types import InstanceState

_RUNNING = InstanceState.RUNNING
"""By itself: reading a member of an enum costs a call on Python 3.11."""


class Ranks:
    """By `rule`; whoever changes it places all anew."""

    def __init__(self, rule: DispatchRule, priority_target_tokens: int | None) -> None:
        self.rule = rule
        self.normal: list[RankKey] = []
        """For normal requests."""
        self._high: list[RankKey] | None = None
        """For high ones, from the first that came: until then a report or a dispatch ranks its instance once, not
        twice."""
        self._target_tokens = priority_target_tokens

    def high(self, entries: Iterable[KnownInstance]) -> list[RankKey]:
        """For high requests. `entries`: all that are known."""
        if self._high is None:
            self._high = []
            for entry in entries:
                if entry.keys[0] is not None:
                    self._move(entry, [entry.keys[0], self._key(entry, high=True)])
        return self._high

    def place(self, entry: KnownInstance) -> None:
        """Where its view puts it: nowhere, if it takes no requests."""
        if entry.view.state is not _RUNNING:
            self.remove(entry)
        else:
            for_high = None if self._high is None else self._key(entry, high=True)
            self._move(entry, [self._key(entry, high=False), for_high])

    def remove(self, entry: KnownInstance) -> None:
        self._move(entry, [None, None])

    def _key(self, entry: KnownInstance, high: bool) -> RankKey:
        return *self.rule.rank(entry.view, high, entry.last_turn, self._target_tokens), entry.view.id

    def _move(self, entry: KnownInstance, keys: list[RankKey | None]) -> None:
        for order, old, new in zip((self.normal, self._high), entry.keys, keys, strict=True):
            if order is None or old == new:
                continue
            if old is not None:
                del order[bisect_left(order, old)]
            if new is not None:
                insort(order, new)
        entry.keys = keys
