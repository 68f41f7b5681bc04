"""What clients notice when an instance is killed, and when the scheduler is.

    python benchmarks/failover.py --rounds 4

Three instances of the tiny model under streams. (a) One is killed with SIGKILL: its streams must go on elsewhere after
one detection and one prefill of prompt and tokens so far. The same prefill is measured beside it, on the survivors
under the same load, as the time to the first token of new requests of the same length. (b) The scheduler is killed
again and again for a while: requests must be served as before. Times before and during the outage are taken in turn.

Exit code 1 if a request failed or a goal was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
import numpy as np
import psutil
from frame.admin import Admin
from frame.arguments import at_least_one, positive
from frame.models import tiny_engine_flags
from frame.server import ServerProcess, llumnix_server
from frame.stream import Output, Streaming, exactly, open_session
from frame.verdict import Figure, at_most, conclude
from rich.console import Console

from llumnix.api.bodies import InstancesAnswer

GOAL_REPREFILL, GOAL_DETECTION_S, GOAL_TTFT = 1.5, 0.5, 1.2
_INSTANCES = 3
_POLL_S = 0.005
_OUTPUT_TOKENS = 800
_KILL_AT_TOKENS = 60
_PROBES = 3


@dataclass(slots=True)
class Kill:
    """One killed instance."""

    detection_s: float
    """From the signal until the front end knew."""
    gaps_s: list[float]
    """Between the last token before and the first after it, of the streams that ran there."""
    prefills_s: list[float]
    neighbours_s: list[float]
    """The largest gap of each stream that ran elsewhere."""


@dataclass(slots=True)
class Results:
    kills: list[Kill] = field(default_factory=list)
    ttfts_s: dict[str, list[float]] = field(default_factory=lambda: {"before": [], "during": []})
    without_scheduler_s: float = 0.0
    scheduler_kills: int = 0
    requests: int = 0
    failures: list[str] = field(default_factory=list)


class Clients:
    def __init__(self, session: aiohttp.ClientSession, results: Results) -> None:
        self._session = session
        self._admin = Admin(session)
        self._results = results
        self._rng = random.Random(1)
        self._streams: list[Streaming] = []
        self.places: list[str] = []
        """Ids of the instances, in the order in which `X-data-parallel-rank` counts them."""

    def start(self, prompt_tokens: int, output_tokens: int, slot: int | None = None) -> Streaming:
        """Streams a request of new random tokens, at a place of its own if `slot` says so."""
        prompt = [self._rng.randrange(256) for _ in range(prompt_tokens)]
        self._results.requests += 1
        name = f"failover-{self._results.requests}"
        stream = Streaming(self._session, exactly("tiny", prompt, output_tokens), name=name, engine=slot)
        self._streams.append(stream)
        return stream

    async def first_token_s(self, prompt_tokens: int, slot: int) -> float:
        stream = self.start(prompt_tokens, 2, slot)
        await stream.pieces(1)
        return stream.output.ttft_s

    async def running(self) -> dict[str, int]:
        """Pids by id."""
        return _running(await self._admin.status())

    async def all_serve(self) -> None:
        """Waits for all instances and the scheduler. A new instance has the place of the one that was killed."""
        async with asyncio.timeout(120):
            await self.until(lambda status: len(_running(status)) == _INSTANCES and _schedules(status))
        now = await self.running()
        new = sorted(set(now) - set(self.places), key=lambda name: int(name[1:]))
        self.places = [name if name in now else new.pop(0) for name in self.places] or new

    async def until(self, condition: Callable[[InstancesAnswer], bool]) -> None:
        while True:
            if condition(await self._admin.status()):
                return
            await asyncio.sleep(_POLL_S)

    async def all_ended(self) -> None:
        """Every stream so far; those that failed are noted."""
        ends = await asyncio.gather(*(stream.task for stream in self._streams), return_exceptions=True)
        for end in ends:
            if isinstance(end, aiohttp.ClientError):
                self._results.failures.append(f"{type(end).__name__}: {end}")
            elif isinstance(end, BaseException):
                raise end
            elif end.failure:
                self._results.failures.append(end.failure)
        self._streams.clear()


def _running(status: InstancesAnswer) -> dict[str, int]:
    return {row.id: row.pid for row in status.instances if row.state == "running" and row.pid is not None}


def _schedules(status: InstancesAnswer) -> bool:
    return status.scheduler is not None and status.scheduler.state == "running"


def main() -> int:
    arguments = _parse()
    flags = tiny_engine_flags(max_model_len=4096, kv_mib=96)
    with llumnix_server(flags, instances=_INSTANCES) as server:
        results = asyncio.run(_measure(server, arguments))
    return _tell(results)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=at_least_one, default=4, help="Of either part. Default: 4.")
    parser.add_argument(
        "--streams", type=at_least_one, default=2, help="Streams per instance when it is killed. Default: 2."
    )
    parser.add_argument("--prompt-tokens", type=at_least_one, default=1500)
    parser.add_argument("--rate", type=positive, default=6.0, help="Requests/s beside the dying scheduler. Default: 6.")
    parser.add_argument("--seconds", type=positive, default=10.0, help="Before and during, each round. Default: 10.")
    return parser.parse_args()


async def _measure(server: ServerProcess, arguments: argparse.Namespace) -> Results:
    results = Results()
    async with open_session(server.url, timeout_s=None, keep_alive=True) as session:
        clients = Clients(session, results)
        for number in range(arguments.rounds):
            results.kills.append(await _kill_one(clients, number % _INSTANCES, arguments))
        for _ in range(arguments.rounds):
            await clients.all_serve()
            results.ttfts_s["before"] += await _offer(clients, arguments)
            killer = asyncio.create_task(_keep_killing(server, results))
            results.ttfts_s["during"] += await _offer(clients, arguments)
            killer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await killer
    return results


async def _kill_one(clients: Clients, victim: int, arguments: argparse.Namespace) -> Kill:
    await clients.all_serve()
    streams = [
        [clients.start(arguments.prompt_tokens, _OUTPUT_TOKENS, slot) for _ in range(arguments.streams)]
        for slot in range(_INSTANCES)
    ]
    for stream in (stream for there in streams for stream in there):
        await stream.pieces(_KILL_AT_TOKENS)
    survivors = [slot for slot in range(_INSTANCES) if slot != victim]
    length = arguments.prompt_tokens + len(streams[victim][0].output.times_s)
    prefills_s = [await clients.first_token_s(length, slot) for slot in survivors for _ in range(_PROBES)]
    name = clients.places[victim]
    os.kill((await clients.running())[name], signal.SIGKILL)
    killed_s = asyncio.get_running_loop().time()
    await clients.until(lambda status: name not in _running(status))
    detection_s = asyncio.get_running_loop().time() - killed_s
    await clients.all_ended()
    outputs = [[stream.output for stream in there] for there in streams]
    return Kill(
        detection_s,
        [gap_across(output, killed_s) for output in outputs[victim] if output.times_s[-1] > killed_s],
        prefills_s,
        [max(output.gaps_s(killed_s, killed_s + 10.0)) for slot in survivors for output in outputs[slot]],
    )


def gap_across(output: Output, at_s: float) -> float:
    """Between the last piece before a moment and the first one after it."""
    before = max(when for when in output.times_s if when <= at_s)
    return min(when for when in output.times_s if when > at_s) - before


async def _offer(clients: Clients, arguments: argparse.Namespace) -> list[float]:
    """Poisson arrivals of short requests; the times to their first tokens, from when each was due."""
    rng, clock = random.Random(7), asyncio.get_running_loop().time
    streams: list[tuple[float, Streaming]] = []
    due_s = clock()
    ends_s = due_s + arguments.seconds
    while (due_s := due_s + rng.expovariate(arguments.rate)) < ends_s:
        await asyncio.sleep(due_s - clock())
        streams.append((due_s, clients.start(rng.randint(20, 300), rng.randint(20, 60))))
    await clients.all_ended()
    return [stream.output.times_s[0] - due_s for due_s, stream in streams if stream.output.times_s]


async def _keep_killing(server: ServerProcess, results: Results) -> None:
    """Kills the scheduler whenever there is one."""
    began_s = time.monotonic()
    try:
        while True:
            for child in psutil.Process(server.process.pid).children():
                with contextlib.suppress(psutil.Error):
                    if "llumnix.cluster.scheduler_process" in child.cmdline():
                        child.kill()
                        results.scheduler_kills += 1
            await asyncio.sleep(0.1)
    finally:
        results.without_scheduler_s += time.monotonic() - began_s


def _tell(results: Results) -> int:
    console = Console(width=140)
    gaps = [gap for kill in results.kills for gap in kill.gaps_s]
    prefill_s = float(np.median([each for kill in results.kills for each in kill.prefills_s]))
    detection_s = float(np.median([kill.detection_s for kill in results.kills]))
    gap_s = float(np.median(gaps))
    console.print(f"{len(results.kills)} instances killed under {len(gaps)} streams of theirs")
    for kill in results.kills:
        console.print(
            f"  detected after {kill.detection_s * 1e3:.0f} ms; streams stood still for {_all_ms(kill.gaps_s)}; "
            f"one prefill beside it {_all_ms(kill.prefills_s)}; largest gaps elsewhere {_all_ms(kill.neighbours_s)} ms"
        )
    before, during = (results.ttfts_s[when] for when in ("before", "during"))
    p99_before, p99_during = float(np.percentile(before, 99)), float(np.percentile(during, 99))
    console.print(
        f"scheduler killed {results.scheduler_kills} times in {results.without_scheduler_s:.0f} s; TTFT P50 / P99, ms: "
        f"before {_p(before)} ({len(before)} requests), during {_p(during)} ({len(during)} requests)"
    )
    for failure in sorted(set(results.failures)):
        console.print(failure, markup=False)
    return conclude(
        Figure("resume gap, P50", 1e3 * gap_s, unit="ms"),
        Figure("of it detection, P50", 1e3 * detection_s, at_most(1e3 * GOAL_DETECTION_S), "ms"),
        Figure("the rest, in prefills", (gap_s - detection_s) / prefill_s, at_most(GOAL_REPREFILL)),
        Figure("one prefill beside it, P50", 1e3 * prefill_s, unit="ms"),
        Figure("TTFT P99 while schedulers are killed / before", p99_during / p99_before, at_most(GOAL_TTFT)),
        Figure("requests", results.requests),
        Figure("failed", len(results.failures), at_most(0)),
    )


def _all_ms(values_s: list[float]) -> str:
    return " ".join(f"{value * 1e3:.0f}" for value in sorted(values_s))


def _p(values_s: list[float]) -> str:
    p50, p99 = np.percentile(values_s, [50, 99])
    return f"{p50 * 1e3:.0f} / {p99 * 1e3:.0f}"


if __name__ == "__main__":
    sys.exit(main())
