"""Which beginnings of prompts an instance has in its cache, or will have when a request that comes now is served.

Entered when a request comes: what is computed for one that came before is there when the next one starts. The engine's
cache is asked about each entry now and then (`sweep`), so what it has thrown away goes here, too; nothing has to be
heard of each block. Front ends are told what changed since they were told last (`news`), with a report each.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

import msgspec

from llumnix.policy.prefix import ChunkId
from llumnix.types import RequestId

MOST_ENTRIES = 1 << 15
"""The oldest go first."""

WHOLE_EVERY = 1500
"""News, after which everything is told anew: some 30 s under load."""


SWEEP_S = 1.0
"""Between two sweeps."""


class Chunk(NamedTuple):
    """A chunk of a prompt, and what the engine's cache knows its end by."""

    id: ChunkId
    key: Hashable


class Depths(NamedTuple):
    """How many of the first chunks of a prompt an instance has."""

    cached: int
    """In its cache at this moment."""
    coming: int
    """Of a request that came before and is still to be computed: in its cache when the next one starts."""


class PrefixNews(msgspec.Struct, frozen=True, gc=False):
    """What is in an instance's table that was not, and what is no more."""

    number: int
    """Grows by one each time."""
    added: tuple[ChunkId, ...]
    removed: tuple[ChunkId, ...] = ()
    whole: bool = False
    """`added` is all there is, whatever was told before."""


class PrefixTable:
    """Of one instance. `is_cached` asks the engine's cache about a key."""

    def __init__(self, is_cached: Callable[[Hashable], bool]) -> None:
        self._is_cached = is_cached
        self._keys: dict[ChunkId, Hashable] = {}
        self._coming: dict[RequestId, tuple[ChunkId, ...]] = {}
        """Of requests that are not computed yet, as far as somebody knows."""
        self._expected: set[ChunkId] = set()
        """All of those."""
        self._added: set[ChunkId] = set()
        self._removed: set[ChunkId] = set()
        self._number = 0
        self._whole_at = 0

    def __len__(self) -> int:
        return len(self._keys)

    def comes(self, request: RequestId, chunks: Sequence[Chunk]) -> Depths:
        """A request is queued here."""
        ids = tuple(chunk.id for chunk in chunks)
        cached = list(takewhile(lambda chunk: self._is_cached(chunk.key), chunks))
        coming = list(takewhile(lambda each: each in self._expected, ids))
        self._coming[request] = ids
        self._expected.update(ids)
        self.holds(chunks)
        return Depths(len(cached), len(coming))

    def holds(self, chunks: Iterable[Chunk]) -> None:
        """The engine has computed them, or got them from elsewhere."""
        for chunk in chunks:
            if chunk.id not in self._keys:
                self._note(chunk.id, self._added, self._removed)
            self._keys[chunk.id] = chunk.key
        while len(self._keys) > MOST_ENTRIES:
            self._drop(next(iter(self._keys)))

    def sweep(self, is_coming: Callable[[RequestId], bool]) -> None:
        """Forgets what the engine has not. `is_coming`: the request has still to be computed here."""
        self._coming = {request: ids for request, ids in self._coming.items() if is_coming(request)}
        self._expected = {each for ids in self._coming.values() for each in ids}
        for each, key in list(self._keys.items()):
            if each not in self._expected and not self._is_cached(key):
                self._drop(each)

    def news(self) -> PrefixNews | None:
        """To be told now; None if nothing has changed."""
        if not (self._added or self._removed):
            return None
        if self._number >= self._whole_at:
            return self.everything()
        self._number += 1
        told = PrefixNews(self._number, tuple(self._added), tuple(self._removed))
        self._added, self._removed = set(), set()
        return told

    def everything(self) -> PrefixNews:
        """For a listener that is new, or has missed something."""
        self._number += 1
        self._whole_at = self._number + WHOLE_EVERY
        self._added, self._removed = set(), set()
        return PrefixNews(self._number, tuple(self._keys), whole=True)

    def _drop(self, chunk: ChunkId) -> None:
        del self._keys[chunk]
        self._note(chunk, self._removed, self._added)

    @staticmethod
    def _note(chunk: ChunkId, now: set[ChunkId], before: set[ChunkId]) -> None:
        """What changed back is no news."""
        if chunk in before:
            before.discard(chunk)
        else:
            now.add(chunk)
