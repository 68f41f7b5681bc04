"""Tells many who watch what one look found: looked and written down once, however many there are.

Whoever has read the last frame gets what has changed since. Whoever was too slow for some, or is new, gets the whole
picture of now: nothing waits for a reader, and nothing is kept for one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import msgspec

MOST_VIEWERS = 16
"""Per stream and front end."""
APART = 1 / 64
"""Of the time between two pictures, between two viewers that are told one: tokens go out in between."""


class Picture(NamedTuple):
    """What there is to see at one moment."""

    whole: msgspec.Struct
    changes: msgspec.Struct
    """Since the picture before."""


@dataclass(eq=False)
class _Told:
    """One picture, numbered, and written down when somebody wants it."""

    number: int
    picture: Picture

    @cached_property
    def whole(self) -> bytes:
        return as_event(self.picture.whole)

    @cached_property
    def changes(self) -> bytes:
        return as_event(self.picture.changes)


def as_event(frame: msgspec.Struct) -> bytes:
    """Of a stream of server-sent events."""
    return b"data: %s\n\n" % msgspec.json.encode(frame)


class Feed:
    """`run` looks, as long as somebody watches; `frames` is what one viewer gets."""

    def __init__(
        self, look: Callable[[], Awaitable[Picture]], interval_s: float, is_closing: Callable[[], bool]
    ) -> None:
        """`is_closing`: whether the server ends, and with it every stream."""
        self._look = look
        self._interval_s = interval_s
        self._is_closing = is_closing
        self._stopped = False
        self._viewers = 0
        self._watched = asyncio.Event()
        self._told: _Told | None = None
        self._news = asyncio.Event()
        """Set, and replaced, when there is a new picture."""

    @property
    def is_full(self) -> bool:
        return self._viewers >= MOST_VIEWERS

    @property
    def is_over(self) -> bool:
        return self._stopped or self._is_closing()

    async def run(self) -> None:
        try:
            await self._keep_looking()
        finally:
            self._stopped = True
            self._news.set()

    async def _keep_looking(self) -> None:
        number = 0
        while True:
            await self._watched.wait()
            picture = await self._look()
            number += 1
            if self._viewers:
                self._told = _Told(number, picture)
            self._news.set()
            self._news = asyncio.Event()
            await asyncio.sleep(self._interval_s)

    @contextmanager
    def viewer(self) -> Iterator[None]:
        """Somebody watches while this lasts."""
        self._viewers += 1
        self._watched.set()
        try:
            yield
        finally:
            self._viewers -= 1
            if not self._viewers:
                self._watched.clear()
                self._told = None

    async def frames(self) -> AsyncIterator[bytes]:
        """Until the server ends. Each is made when it is asked for: whoever asks late misses some."""
        seen, place = 0, self._viewers % MOST_VIEWERS
        while not self.is_over:
            told = self._told
            if told is None or told.number == seen:
                await self._news.wait()
                await asyncio.sleep(place * APART * self._interval_s)
                continue
            yield told.changes if told.number == seen + 1 and seen else told.whole
            seen = told.number
