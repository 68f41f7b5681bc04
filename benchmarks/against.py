"""Whether serving costs what it did: this checkout and another one, side by side in one run.

    python benchmarks/against.py PATH [--rounds 3] [--only overhead,downtime,workers,drain]

PATH is another checkout of the same project, say an older commit in a `git worktree`; its servers run with its own
source and this Python. In each of four comparisons the two have their turns one after the other, round after round, so
that a change of the machine's mood meets both; ratios are taken within a round, ours over the other's, and their median
counts.

- *overhead*: as `overhead.py`, with three servers: ours, the other's, and `vllm serve --data-parallel-size 2`.
- *downtime*: as `migration_downtime.py`: a stream is moved to and fro; the gap at its hand-over.
- *workers*: the same between engines with two workers each, both of which have other work and a step in flight.
- *drain*: as `drain.py`: how long until an instance with many long generations is empty.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import overhead
from drain import Drained, drain_under_load, long_request, serving
from frame.arguments import at_least_one
from frame.models import paced_engine_flags, tiny_engine_flags
from frame.server import ServerProcess, llumnix_server, vllm_server
from frame.stream import open_session, served_model
from frame.verdict import ROOT, Figure, Goal, at_least, at_most, conclude, median
from migration_downtime import AWAY, HOME, QUIET_PIECES, ROOM_TOKENS, Client, Move, migrate_to_and_fro

OURS, OTHER, VLLM = overhead.OURS, "the other checkout", overhead.THEIRS
INSTANCES = 2

THROUGHPUT, CPU, TTFT = at_least(0.95), at_most(1.05), at_most(1.1)
GAP, EMPTY = at_most(1.1), at_most(1.2)
"""Of ours over the other's. What a change costs by mistake is more than this; what a machine's mood costs is less, if
nothing else runs."""

LENGTHS = (512, 2048)
STEP_MS = 40.0
"""Of engines with two workers: longer than what a busy machine adds."""
MOVES = 6
DRAIN_LIMIT_S = 120.0


@contextmanager
def source_of(checkout: Path) -> Iterator[None]:
    """Servers that are started meanwhile are this checkout's."""
    path = os.pathsep.join(filter(None, (str(checkout / "src"), os.environ.get("PYTHONPATH"))))
    with mock.patch.dict(os.environ, PYTHONPATH=path):
        yield


def in_turns(checkouts: dict[str, Path], round_: int) -> list[tuple[str, Path]]:
    """Who comes first changes from round to round."""
    both = list(checkouts.items())
    return both if round_ % 2 == 0 else both[::-1]


def compare_overhead(checkouts: dict[str, Path], rounds: int, requests: int) -> list[Figure]:
    engine = tiny_engine_flags()
    load = overhead.Load(requests, concurrency=32, prompt_tokens=64, output_tokens=64, share=0.4)
    with ExitStack() as stack:
        servers = _both(checkouts, stack, engine)
        alike = ("--api-server-count", "1", "--distributed-executor-backend", "uni")
        parallel = ("--data-parallel-size", str(INSTANCES))
        servers[VLLM] = stack.enter_context(vllm_server(engine, *parallel, *alike))
        figures = asyncio.run(overhead.measure(servers, load, rounds))
    overhead.print_table(figures)
    ours, other, vllm = (figures[name] for name in (OURS, OTHER, VLLM))
    told = []
    for name, goals, mine, theirs in (
        ("ours / the other's", (THROUGHPUT, TTFT, CPU), ours, other),
        ("ours / vllm", (None, None, None), ours, vllm),
        ("the other's / vllm", (None, None, None), other, vllm),
    ):
        told += [
            median(f"throughput, {name}", overhead.ratios(mine.tokens_per_s, theirs.tokens_per_s), goals[0], "×"),
            median(f"TTFT P50, {name}", overhead.ratios(mine.ttft_s, theirs.ttft_s), goals[1], "×"),
            median(
                f"processor time per token, {name}",
                overhead.ratios(mine.cpu_ms_per_token, theirs.cpu_ms_per_token),
                goals[2],
                "×",
            ),
        ]
    return told


def compare_downtime(checkouts: dict[str, Path], rounds: int) -> list[Figure]:
    engine = tiny_engine_flags(max(LENGTHS) + ROOM_TOKENS + 64, kv_mib=128)
    with ExitStack() as stack:
        servers = _both(checkouts, stack, engine, "--no-migration", "--no-enable-prefix-caching")
        gaps = asyncio.run(_gaps(checkouts, servers, rounds, LENGTHS, neighbours=()))
    return _told("gap at a hand-over", gaps)


def compare_workers(checkouts: dict[str, Path], rounds: int) -> list[Figure]:
    """A worker in a process of its own answers behind the step in flight."""
    window = LENGTHS[0] + ROOM_TOKENS + 64
    flags = ("--tensor-parallel-size", "2", "--async-scheduling", "--no-migration", "--no-enable-prefix-caching")
    with ExitStack() as stack:
        engine = stack.enter_context(paced_engine_flags(STEP_MS, 0.0, window, kv_mib=64))
        servers = _both(checkouts, stack, engine, *flags)
        gaps = asyncio.run(_gaps(checkouts, servers, rounds, LENGTHS[:1], neighbours=(HOME, AWAY)))
    return _told("gap at a hand-over with two workers", gaps)


def _told(what: str, gaps: dict[str, list[float]]) -> list[Figure]:
    ratios = [mine / theirs for mine, theirs in zip(gaps[OURS], gaps[OTHER], strict=True)]
    return [
        median(f"{what}, ours / the other's", ratios, GAP, "×"),
        *(median(f"{what}, {name}", gaps[name], unit="normal steps") for name in gaps),
    ]


async def _gaps(
    checkouts: dict[str, Path],
    servers: dict[str, ServerProcess],
    rounds: int,
    lengths: tuple[int, ...],
    neighbours: tuple[str, ...],
) -> dict[str, list[float]]:
    """Median gap at a hand-over in normal steps, for each length in each round. `neighbours`: instances that have a
    stream beside."""
    gaps: dict[str, list[float]] = {name: [] for name in checkouts}
    async with (
        open_session(servers[OURS].url, timeout_s=None, keep_alive=True) as one,
        open_session(servers[OTHER].url, timeout_s=None, keep_alive=True) as two,
    ):
        model, rng = await served_model(one), random.Random(0)
        clients = {OURS: Client(one, model, rng), OTHER: Client(two, model, rng)}
        for client in clients.values():  # warm-up
            await migrate_to_and_fro(client, lengths[0], MOVES)
        for round_ in range(rounds):
            for length in lengths:
                for name, _ in in_turns(checkouts, round_):
                    moves = await _beside(clients[name], length, neighbours)
                    gaps[name].append(statistics.median(map(_in_steps, moves)))
    return gaps


async def _beside(client: Client, length: int, neighbours: tuple[str, ...]) -> list[Move]:
    async with AsyncExitStack() as stack:
        for instance in neighbours:
            streaming = await stack.enter_async_context(client.running(QUIET_PIECES, ROOM_TOKENS))
            if instance != HOME:
                await client.move(streaming, instance)
        return await migrate_to_and_fro(client, length, MOVES)


def _in_steps(move: Move) -> float:
    return (move.downtime_s + move.step_s) / move.step_s


def compare_drain(checkouts: dict[str, Path], rounds: int, streams: int) -> list[Figure]:
    """A server of its own for each drain."""
    seconds: dict[str, list[float]] = {name: [] for name in checkouts}
    failed = 0
    for round_ in range(rounds):
        bodies = [long_request(random.Random(f"{round_}-{n}")) for n in range(streams)]
        for name, checkout in in_turns(checkouts, round_):
            with ExitStack() as stack:
                with source_of(checkout):
                    server = stack.enter_context(serving())
                drained: Drained = asyncio.run(drain_under_load(server.url, bodies, 5, DRAIN_LIMIT_S))
            seconds[name].append(drained.report.seconds)
            failed += len(drained.errors) + (drained.report.outcome != "empty")
    ratios = [mine / theirs for mine, theirs in zip(seconds[OURS], seconds[OTHER], strict=True)]
    return [
        median("drained in, ours / the other's", ratios, EMPTY, "×"),
        *(median(f"drained in, {name}", seconds[name], unit="s") for name in checkouts),
        Figure("drains and streams that failed", failed, Goal(0)),
    ]


def _both(checkouts: dict[str, Path], stack: ExitStack, engine: list[str], *flags: str) -> dict[str, ServerProcess]:
    servers = {}
    for name, checkout in checkouts.items():
        with source_of(checkout):
            servers[name] = stack.enter_context(llumnix_server(engine, *flags, instances=INSTANCES))
    return servers


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=at_least_one, default=3)
    parser.add_argument("--requests", type=at_least_one, default=192, help="of each load on a server (192)")
    parser.add_argument("--streams", type=at_least_one, default=30, help="on the instance that is drained (30)")
    parser.add_argument("--only", default="overhead,downtime,workers,drain", help="those to make, with commas between")
    arguments = parser.parse_args()
    if not (arguments.path / "src" / "llumnix").is_dir():
        parser.error(f"{arguments.path} is no checkout of Llumnix: it has no src/llumnix")
    arguments.only = arguments.only.split(",")
    if unknown := set(arguments.only) - {"overhead", "downtime", "workers", "drain"}:
        parser.error(f"--only knows overhead, downtime, workers and drain, not {', '.join(sorted(unknown))}")
    return arguments


def main() -> int:
    arguments = parse()
    checkouts = {OURS: ROOT, OTHER: arguments.path.resolve()}
    figures: list[Figure] = []
    if "overhead" in arguments.only:
        figures += compare_overhead(checkouts, arguments.rounds, arguments.requests)
    if "downtime" in arguments.only:
        figures += compare_downtime(checkouts, arguments.rounds)
    if "workers" in arguments.only:
        figures += compare_workers(checkouts, arguments.rounds)
    if "drain" in arguments.only:
        figures += compare_drain(checkouts, arguments.rounds, arguments.streams)
    return conclude(*figures)


if __name__ == "__main__":
    sys.exit(main())
