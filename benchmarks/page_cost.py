"""What the live page costs its server, and how soon it is there.

    python benchmarks/page_cost.py

1. A front end's share of a core for five viewers: 64 instances that are none, all of which change in each tenth of a
   second, behind the real routes; with viewers and without, in turns.
2. For how long one turn of its event loop lasts then, which is where tokens go out.
3. The gaps between tokens of streams on two real engines, with five viewers and without, in turns on one server
   (`_watched_streams.py`). They are the tiny model's, which take both cores; with `--step-ms 20` each step waits for so
   long, as one on a device does, and cores are free.
4. The first paint in Chromium (Debian's `chromium`; left out where there is none), of 64 instances.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from unittest.mock import patch

import psutil
from _viewers import CLUSTER, REQUESTS, viewers, watch
from _watched_streams import p99_ms, pairs, ratio_of_all
from frame.arguments import at_least_one, not_negative, positive, whole
from frame.browser import CHROMIUM, chromium
from frame.child import child
from frame.models import paced_engine_flags
from frame.page_server import STEP_S, PageServer, page_server
from frame.pretend import PretendCluster
from frame.pretend_board import PretendBoard
from frame.server import llumnix_server
from frame.verdict import Figure, at_most, conclude, likely, median
from frame.vitals import cpu_s

INSTANCES = 64
VIEWERS = 5
PARTS = ("front-end", "turns", "streams", "paint")
BEFORE_OTHERS = -10
GOAL_CORE = 2.0
GOAL_RATIO = 1.02
GOAL_PAINT_MS = 1000.0


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
        read += sum(await asyncio.gather(*(watch(url, CLUSTER, seconds) for _ in range(VIEWERS))))
        costs.append(100 * (cpu_s([process]) - began - alone) / seconds)
    return costs, read / (turns * seconds * VIEWERS) / 1e3


def front_end(seconds: float, turns: int) -> list[Figure]:
    with child(pretend) as (url, _, process):
        costs, rate = asyncio.run(shares(url, psutil.Process(process.pid), seconds, turns))
    return [
        median(f"{VIEWERS} viewers of {INSTANCES} instances: a core's share", costs, at_most(GOAL_CORE), "%"),
        Figure("told to each viewer", rate, None, "kB/s"),
    ]


# 2. a turn of the loop


async def longest_turns_ms(server: PageServer, seconds: float) -> list[float]:
    """Of its event loop, in which this runs, in processor time: the longest of each second. For so long a token waits
    that came at the beginning."""
    found = []
    for _ in range(round(seconds)):
        until_s, step_s, longest_s = time.monotonic() + 1, time.monotonic(), 0.0
        while time.monotonic() < until_s:
            before_s = time.thread_time()
            await asyncio.sleep(0)
            longest_s = max(longest_s, time.thread_time() - before_s)
            if time.monotonic() > step_s:
                server.cluster.step()
                step_s += STEP_S
        found.append(1e3 * longest_s)
    return found


def turns(seconds: float) -> list[Figure]:
    async def watched(server: PageServer, path: str, count: int) -> list[float]:
        with viewers(server.url, path, count) as watching:
            await watching.come()
            turning = longest_turns_ms(server, seconds)
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(turning, server.loop))

    figures = []
    for name, path, count in (
        ("nobody watches", CLUSTER, 0),
        (f"{VIEWERS} watch the cluster", CLUSTER, VIEWERS),
        (f"{VIEWERS} watch its requests", REQUESTS, VIEWERS),
    ):
        with page_server(PretendCluster(INSTANCES), past_s=60, steps=False) as server:
            told = server.board.scaling  # a real switchboard is told it, and works nothing out
            with patch.object(PretendBoard, "scaling", told):
                longest_ms = asyncio.run(watched(server, path, count))
        figures.append(median(f"longest turn of the loop in a second, {name}", longest_ms, unit="ms"))
    return figures


# 3. streams


def streams(number: int, count: int, step_ms: float) -> list[Figure]:
    with suppress(PermissionError):  # only root may; else much of what is seen is what others do on the machine
        os.setpriority(os.PRIO_PROCESS, 0, BEFORE_OTHERS)
    with ExitStack() as running:
        engine = (
            running.enter_context(paced_engine_flags(step_ms, 0.0, max_model_len=2048, kv_mib=12)) if step_ms else []
        )
        server = running.enter_context(llumnix_server(engine, instances=2))
        found = asyncio.run(pairs(server.url, count, number))
    return [
        Figure("P99 gap between tokens, nobody watches", p99_ms(pair.alone for pair in found), None, "ms"),
        Figure(f"… {count} watch", p99_ms(pair.watched for pair in found), None, "ms"),
        likely("ratio, of all gaps", found, ratio_of_all, unit="×"),
        likely("ratio, median of pairs", [pair.ratio for pair in found], statistics.median, at_most(GOAL_RATIO), "×"),
    ]


# 4. the first paint


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
    parser.add_argument("--seconds", type=positive, default=10.0, help="of the turns of parts 1 and 2 (default: 10)")
    parser.add_argument(
        "--turns", type=at_least_one, default=5, help="with and without viewers, and paints (default: 5)"
    )
    parser.add_argument("--pairs", type=at_least_one, default=40, help="of the third part, 9 s each (default: 40)")
    parser.add_argument("--viewers", type=whole, default=VIEWERS, help="of the third part; 0: what chance does")
    parser.add_argument(
        "--step-ms", type=not_negative, default=0.0, help="of its engines, which then wait (default: as it is)"
    )
    parser.add_argument("--only", choices=PARTS, help="One part.")
    values = parser.parse_args()
    figures: list[Figure] = []
    if values.only in (None, "front-end"):
        figures += front_end(values.seconds, values.turns)
    if values.only in (None, "turns"):
        figures += turns(values.seconds)
    if values.only in (None, "paint"):
        figures += first_paint(values.turns)
    if values.only in (None, "streams"):
        figures += streams(values.pairs, values.viewers, values.step_ms)
    return conclude(*figures)


if __name__ == "__main__":
    sys.exit(main())
