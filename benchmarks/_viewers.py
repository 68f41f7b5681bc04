"""Viewers of the live page: they read what they are told, and are no part of what is measured."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import aiohttp

CLUSTER = "/llumnix/v1/watch"
REQUESTS = "/llumnix/v1/watch/requests"
_WHY_NOT_S = 2.0
_SOON_S = 60.0


async def watch(url: str, stream: str, seconds: float = math.inf, on_piece: Callable[[], None] = lambda: None) -> int:
    """One viewer of a `stream` of the server: as the page, it also asks why nothing moves. The bytes that it read."""
    timeout = aiohttp.ClientTimeout(total=None)
    read = 0
    async with (
        aiohttp.ClientSession(url, timeout=timeout) as session,
        session.get(stream) as answer,
        asyncio.TaskGroup() as group,
    ):
        answer.raise_for_status()
        asks = group.create_task(_ask_why_not(session))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                async for piece in answer.content.iter_any():
                    read += len(piece)
                    on_piece()
                raise SystemExit("the stream ended by itself")
        asks.cancel()
    return read


async def _ask_why_not(session: aiohttp.ClientSession) -> None:
    while True:
        async with session.get("/llumnix/v1/why-not") as answer:
            answer.raise_for_status()
            await answer.read()
        await asyncio.sleep(_WHY_NOT_S)


class Viewers:
    """They come and go as they are told."""

    def __init__(self, orders: Connection) -> None:
        self._orders = orders

    async def come(self) -> None:
        """Returns when each has been told two pictures."""
        await asyncio.to_thread(self._do, "come")

    async def leave(self) -> None:
        await asyncio.to_thread(self._do, "leave")

    def _do(self, order: str) -> None:
        self._orders.send(order)
        if not self._orders.poll(_SOON_S):
            raise SystemExit(f"viewers did not {order} within {_SOON_S:g} s")
        self._orders.recv()


@contextmanager
def viewers(url: str, stream: str, count: int) -> Iterator[Viewers]:
    """Of a stream of the server: as browsers are, not in the process that reads the streams of tokens."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=_obey, args=(url, stream, count, theirs))
    child.start()
    try:
        yield Viewers(ours)
    finally:
        child.terminate()
        child.join()


def _obey(url: str, stream: str, count: int, orders: Connection) -> None:
    """Reads only when a processor has nothing else to do: browsers are on other machines. The server does not wait."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    asyncio.run(_come_and_go(url, stream, count, orders))


async def _come_and_go(url: str, stream: str, count: int, orders: Connection) -> None:
    while True:
        assert await asyncio.to_thread(orders.recv) == "come"
        pieces, all_watch = itertools.count(1), asyncio.Event()
        if not count:
            all_watch.set()

        def on_piece(pieces: Iterator[int] = pieces, all_watch: asyncio.Event = all_watch) -> None:
            if next(pieces) == 2 * count:
                all_watch.set()

        watching = [asyncio.create_task(watch(url, stream, on_piece=on_piece)) for _ in range(count)]
        await all_watch.wait()
        orders.send("done")
        assert await asyncio.to_thread(orders.recv) == "leave"
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        orders.send("done")
