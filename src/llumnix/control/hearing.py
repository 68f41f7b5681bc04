"""Whom a front end hears: each instance's token stream, from its first word to its last.

News of an instance (its first load report, its end) and its token stream come by different ways, and each may be late.
So what it says before the front end knows it is kept; and when it ended as it was asked to, its stream counts up to its
last word, in which the last tokens and moves of a drained instance are. Whether it takes requests is no matter here: a
request may move to an instance long before its front end sends it any.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from llumnix.control.gone import REMEMBERED
from llumnix.control.latest import Latest
from llumnix.types import InstanceId

MOST_EARLY_WORDS = 4096
"""Of all unknown instances together; more can only come from some whose reports never arrive. Then the first of them is
given up, so that those that come later are heard."""

Word = TypeVar("Word")


class Hearing(Generic[Word]):
    """`index` is an instance's identity in its token stream, `Word` a piece of that stream. An id is never used twice,
    an index not before all others were."""

    def __init__(self) -> None:
        self._known: dict[int, InstanceId] = {}
        self._indexes: dict[InstanceId, int] = {}
        self._early: dict[int, list[Word]] = {}
        self._gone: Latest[int, InstanceId] = Latest(REMEMBERED)  # nobody hears of older ones any more
        self._ended: set[InstanceId] = set()  # its end is known, its last word not heard
        self._done: set[InstanceId] = set()  # its last word is heard

    def says(self, index: int, word: Word) -> InstanceId | None:
        """Who says it; None if it does not count (any more), or is kept until it is known who that is."""
        instance = self._known.get(index)
        if instance is None and index not in self._gone and self._has_room_for(index):
            self._early.setdefault(index, []).append(word)
        return instance

    def introduced(self, index: int, instance: InstanceId) -> list[Word]:
        """Some news names it; returns what it has said already, in order."""
        if self._gone.get(index) == instance:
            return []
        self._gone.pop(index, None)
        self._known[index], self._indexes[instance] = instance, index
        return self._early.pop(index, [])

    def last_word(self, instance: InstanceId) -> bool:
        """Nothing follows in its stream. True if its end is known already: it is gone."""
        self._done.add(instance)
        return instance in self._ended

    def ended(self, instance: InstanceId, expected: bool) -> bool:
        """It will never speak again. True: it is gone; False: it is still heard until its last word or a deadline."""
        if not expected or instance in self._done:
            return True
        self._ended.add(instance)
        return False

    def gone(self, instance: InstanceId) -> bool:
        """From now on it is not heard, whatever it says. Returns whether its stream was heard to the end."""
        index = self._indexes.pop(instance, None)
        if index is not None:
            self._gone[index] = instance
            del self._known[index]
        self._ended.discard(instance)
        complete = instance in self._done
        self._done.discard(instance)
        return complete

    def _has_room_for(self, index: int) -> bool:
        if sum(map(len, self._early.values())) < MOST_EARLY_WORDS:
            return True
        first = next(iter(self._early))
        if first == index:
            return False
        del self._early[first]
        return True
