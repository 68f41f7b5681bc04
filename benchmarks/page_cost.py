"""What the live page costs its server, and how soon it is there.

    python benchmarks/page_cost.py

1. A front end's share of a core for five viewers: 64 instances that are none, all of which change in each tenth of a
   second, behind the real routes; with viewers and without, in turns.
2. The gaps between tokens of streams on two real engines, with five viewers and without, in turns on one server.
3. The first paint in Chromium (Debian's `chromium`; left out where there is none), of 64 instances.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import os
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection

import aiohttp
import psutil
from frame.browser import CHROMIUM, chromium
from frame.page_server import page_server
from frame.pretend import PretendCluster
from frame.server import llumnix_server
from frame.stream import COMPLETIONS, exactly, open_session, served_model, stream
from frame.verdict import Figure, at_most, conclude, median
from frame.vitals import cpu_s

INSTANCES = 64
VIEWERS = 5
STREAMS = 12
TOKENS = 1000
"""Of each stream: for less than some seconds, other things than viewers decide the 99th percentile."""
PARTS = ("front-end", "streams", "paint")
GOAL_CORE = 2.0
GOAL_RATIO = 1.02
GOAL_PAINT_MS = 1000.0


async def watch(url: str, seconds: float, on_piece: Callable[[], None] = lambda: None) -> int:
    """One viewer; the bytes that it read."""
    timeout = aiohttp.ClientTimeout(total=None)
    read = 0
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{url}/llumnix/v1/watch") as answer:
        answer.raise_for_status()
        try:
            async with asyncio.timeout(seconds):
                async for piece in answer.content.iter_any():
                    read += len(piece)
                    on_piece()
        except TimeoutError:
            return read
    raise SystemExit("the stream ended by itself")


# 1. the front end


def pretend(tell: Connection) -> None:
    """A process of its own, so that viewers are not counted."""
    with page_server(PretendCluster(INSTANCES), past_s=60) as server:
        tell.send(server.url)
        tell.recv()


async def shares(url: str, process: psutil.Process, seconds: float, turns: int) -> tuple[list[float], float]:
    """Per cent of a core that viewers cost, turn by turn; and kB/s for each viewer."""

    costs, read = [], 0
    for _ in range(turns):
        began = cpu_s([process])
        await asyncio.sleep(seconds)
        alone = cpu_s([process]) - began
        began = cpu_s([process])
        read += sum(await asyncio.gather(*(watch(url, seconds) for _ in range(VIEWERS))))
        costs.append(100 * (cpu_s([process]) - began - alone) / seconds)
    return costs, read / (turns * seconds * VIEWERS) / 1e3


def front_end(seconds: float, turns: int) -> list[Figure]:
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=pretend, args=(theirs,))
    child.start()
    url = ours.recv()
    costs, rate = asyncio.run(shares(url, psutil.Process(child.pid), seconds, turns))
    ours.send("enough")
    child.join()
    return [
        median(f"{VIEWERS} viewers of {INSTANCES} instances: a core's share", costs, at_most(GOAL_CORE), "%"),
        Figure("told to each viewer", rate, None, "kB/s"),
    ]


# 2. streams


def watch_from_elsewhere(url: str, viewers: int, tell: Connection) -> None:
    """As browsers do: not in the process that reads the streams, nor where these are computed. Tells when all watch."""
    os.nice(19)
    pieces = itertools.count(1)

    def on_piece() -> None:
        if next(pieces) == 2 * viewers:
            tell.send("all")

    async def all_watch() -> None:
        await asyncio.gather(*(watch(url, 3600, on_piece) for _ in range(viewers)))

    asyncio.run(all_watch())


@contextmanager
def watched(url: str, viewers: int) -> Iterator[None]:
    if not viewers:
        yield
        return
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=watch_from_elsewhere, args=(url, viewers, theirs))
    child.start()
    try:
        ours.recv()
        yield
    finally:
        child.terminate()
        child.join()


async def gaps(url: str, viewers: int) -> list[float]:
    """Between tokens, in seconds."""
    rng = random.Random(1)
    async with open_session(url) as session:
        model = await served_model(session)
        bodies = [exactly(model, [rng.randrange(10, 250) for _ in range(40)], TOKENS) for _ in range(STREAMS)]
        with watched(url, viewers):
            outputs = await asyncio.gather(*(stream(session, COMPLETIONS, body) for body in bodies))
    assert all(output.complete for output in outputs), [output.failure for output in outputs]
    begin = max(output.times_s[0] for output in outputs)
    end = min(output.times_s[-1] for output in outputs)
    return [gap for output in outputs for gap in output.gaps_s(begin, end)]


def p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def streams(turns: int) -> list[Figure]:
    with llumnix_server([], instances=2) as server:
        asyncio.run(gaps(server.url, 0))  # warm
        alone: list[float] = []
        beside: list[float] = []
        ratios = []
        for turn in range(turns):
            pair = {}
            for viewers in (0, VIEWERS) if turn % 2 else (VIEWERS, 0):
                pair[viewers] = asyncio.run(gaps(server.url, viewers))
            alone += pair[0]
            beside += pair[VIEWERS]
            ratios.append(p99(pair[VIEWERS]) / p99(pair[0]))
    return [
        Figure("P99 gap between tokens, nobody watches", 1e3 * p99(alone), None, "ms"),
        Figure(f"… {VIEWERS} watch", 1e3 * p99(beside), None, "ms"),
        median("ratio, median of pairs", ratios, at_most(GOAL_RATIO)),
    ]


# 3. the first paint


def first_paint(times: int) -> list[Figure]:
    if CHROMIUM is None:
        print("first paint: left out, there is no chromium here")
        return []
    found = []
    with page_server(PretendCluster(INSTANCES), past_s=600) as server, chromium() as browser:
        for _ in range(times):
            context = browser.new_context()
            page = context.new_page()
            page.goto(f"{server.url}/llumnix/")
            page.locator(".cell").first.wait_for()
            found.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            context.close()
    return [median("first paint", found, at_most(GOAL_PAINT_MS), "ms")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each turn of the first part (default: 10)")
    parser.add_argument("--turns", type=int, default=5, help="with and without viewers (default: 5)")
    parser.add_argument("--only", choices=PARTS, help="One part.")
    values = parser.parse_args()
    figures: list[Figure] = []
    if values.only in (None, "front-end"):
        figures += front_end(values.seconds, values.turns)
    if values.only in (None, "paint"):
        figures += first_paint(values.turns)
    if values.only in (None, "streams"):
        figures += streams(values.turns)
    return conclude(*figures)


if __name__ == "__main__":
    sys.exit(main())
