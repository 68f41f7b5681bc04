"""Whose turn it is: fair service of those who have something waiting, by virtual token counters.

VTC (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024, algorithm 2): each has a counter of the work
done for it, over its weight; the least one is next. Two who wait all the time never differ by more than twice what one
request costs. Who had nothing waiting and comes back is lifted to the least of the others: it keeps no credit for the
time in which it wanted nothing. Nobody is held back while others have nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar


class _Sortable(Hashable, Protocol):
    def __lt__(self, other: Any, /) -> bool: ...


Key = TypeVar("Key", bound=_Sortable)


class Turns(Generic[Key]):
    """Of those who compete with each other. Keeps a counter for each key that ever came; those that do not come any
    more are to be dropped (`keep`). One that never came stands with the highest."""

    def __init__(self) -> None:
        self._served: dict[Key, float] = {}
        self._highest = 0.0
        """The highest counter of whoever had a turn."""

    @property
    def counters(self) -> Mapping[Key, float]:
        return self._served

    def comes(self, key: Key, rivals: Iterable[Key]) -> None:
        """It waits for a turn from now on, as do these others."""
        least = min((self._counter(one) for one in rivals), default=self._highest)
        self._served[key] = max(self._served.get(key, 0.0), least)

    def serve(self, key: Key, work: float) -> None:
        """It had its turn, for so much."""
        self.settle(key, work)
        self._highest = max(self._highest, self._served[key])

    def settle(self, key: Key, work: float) -> None:
        """An earlier turn took so much more; less than nothing, where more was charged before than it took."""
        self._served[key] = self._counter(key) + work

    def next(self, waiting: Sequence[Key]) -> Key:
        """Of these, of whom there must be one."""
        served = [self._counter(key) for key in waiting]
        least = min(served)
        return min(key for key, work in zip(waiting, served, strict=True) if work == least)

    def keep(self, keys: Iterable[Key]) -> None:
        self._served = {key: self._served[key] for key in keys if key in self._served}

    def _counter(self, key: Key) -> float:
        return self._served.get(key, self._highest)
