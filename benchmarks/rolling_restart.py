"""Replaces every instance, one after the other, while clients stream: what they notice.

    python benchmarks/rolling_restart.py --clients 12 [--compile]

Three instances of the tiny model; each client streams one completion after another. First for a while undisturbed, then
during `llumnix restart --rolling`, until that is through. Exit code 1 if a request failed, if the P99 of the gaps
between tokens exceeded one second, or if not as many instances serve afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from dataclasses import dataclass, field

import aiohttp
import numpy as np
from frame.arguments import at_least_one, positive
from frame.models import add_compile_flag, empty_compile_cache, tiny_engine_flags
from frame.server import llumnix_server, running
from frame.stream import COMPLETIONS, Output, exactly, open_session, stream
from frame.verdict import Figure, at_least, at_most, conclude
from rich.console import Console
from rich.table import Table

from llumnix.client import AdminClient
from llumnix.control.scheduler_events import DrainReport
from llumnix.operations import restart_rolling

GOAL_GAP_S = 1.0
STEP_TIMEOUT_S = 120.0


@dataclass(slots=True)
class Period:
    """What the clients saw in one stretch of time."""

    name: str
    seconds: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    ttfts_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Clients:
    """Streams of all clients; each client has one at a time."""

    streams: list[Output] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stopping: bool = False

    async def run(self, session: aiohttp.ClientSession, number: int) -> None:
        rng = random.Random(number)
        while not self.stopping:
            prompt = [rng.randrange(256) for _ in range(rng.randint(20, 300))]
            output = Output()
            self.streams.append(output)
            try:
                await stream(session, COMPLETIONS, exactly("tiny", prompt, rng.randint(100, 500)), output=output)
            except aiohttp.ClientError as error:
                output.error = f"{type(error).__name__}: {error}"
            if output.failure:
                self.failures.append(output.failure)

    def period(self, name: str, after_s: float, until_s: float) -> Period:
        gaps = [gap for output in self.streams for gap in output.gaps_s(after_s, until_s)]
        ttfts = [s.ttft_s for s in self.streams if after_s <= s.sent_s and s.times_s and s.times_s[0] <= until_s]
        return Period(name, until_s - after_s, gaps, ttfts)


def main() -> int:
    arguments = _parse()
    engine = tiny_engine_flags(kv_mib=96, compiled=arguments.compile)
    with empty_compile_cache(), llumnix_server(engine, instances=arguments.instances) as server:
        admin = AdminClient(server.url)
        before = running(admin)
        periods, clients = asyncio.run(_measure(admin, server.url, arguments))
        after, drains = running(admin), admin.drains()
        admin.close()
    return _tell(periods, clients, drains, (before, after))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--instances", type=at_least_one, default=3)
    parser.add_argument("--clients", type=at_least_one, default=12, help="Streams at any time. Default: 12.")
    parser.add_argument(
        "--quiet-s", type=positive, default=15.0, help="Seconds without a restart, before it. Default: 15."
    )
    add_compile_flag(parser)
    return parser.parse_args()


async def _measure(admin: AdminClient, url: str, arguments: argparse.Namespace) -> tuple[list[Period], Clients]:
    clock = asyncio.get_running_loop().time
    clients = Clients()
    async with open_session(url, timeout_s=None, keep_alive=True) as session, asyncio.TaskGroup() as group:
        for number in range(arguments.clients):
            group.create_task(clients.run(session, number))
        await asyncio.sleep(2.0)
        began_s = clock()
        await asyncio.sleep(arguments.quiet_s)
        restarted_s = clock()
        await asyncio.to_thread(restart_rolling, admin, lambda line: print(line, flush=True), STEP_TIMEOUT_S)
        ended_s = clock()
        clients.stopping = True
    periods = [
        clients.period("undisturbed", began_s, restarted_s),
        clients.period("rolling restart", restarted_s, ended_s),
    ]
    return periods, clients


def _tell(
    periods: list[Period], clients: Clients, drains: list[DrainReport], instances: tuple[set[str], set[str]]
) -> int:
    table = Table("", *(period.name for period in periods))
    table.add_row("seconds", *(f"{period.seconds:.1f}" for period in periods))
    table.add_row("gaps between tokens", *(str(len(period.gaps_s)) for period in periods))
    table.add_row("gap P50 / P99 / max, ms", *(_ms(period.gaps_s) for period in periods))
    table.add_row("TTFT P50 / P99 / max, ms", *(_ms(period.ttfts_s) for period in periods))
    console = Console()
    console.print(table)
    for report in drains:
        console.print(
            f"{report.instance}: {report.requests} requests, {report.moved} moved, {report.replayed} "
            f"replayed, {report.finished} finished, empty after {report.seconds:.2f} s"
        )
    before, after = instances
    console.print(f"instances before {sorted(before)}, after {sorted(after)}", markup=False)
    for failure in sorted(set(clients.failures)):
        console.print(failure, markup=False)
    p50_s, p99_s = (float(np.percentile(periods[1].gaps_s, part)) for part in (50, 99))
    return conclude(
        Figure("requests", len(clients.streams)),
        Figure("failed", len(clients.failures), at_most(0)),
        Figure("rolling restart", periods[1].seconds, unit="s"),
        Figure("gap between tokens during it, P50", 1e3 * p50_s, unit="ms"),
        Figure("gap between tokens during it, P99", 1e3 * p99_s, at_most(1e3 * GOAL_GAP_S), "ms"),
        Figure("new instances afterwards", len(after - before), at_least(len(before))),
        Figure("old instances afterwards", len(after & before), at_most(0)),
    )


def _ms(values: list[float]) -> str:
    if not values:
        return ""
    p50, p99 = np.percentile(values, [50, 99])
    return f"{p50 * 1e3:.0f} / {p99 * 1e3:.0f} / {max(values) * 1e3:.0f}"


if __name__ == "__main__":
    sys.exit(main())
