"""What Llumnix costs beside vLLM's own data-parallel server: same vLLM, same engines, same load, same machine.

    python benchmarks/overhead.py [--instances 2] [--rounds 5] [--default] [--model MODEL -- vLLM flags]

Both servers run from the start to the end; the load goes to one, then to the other, round after round, so that a
change of the machine's mood meets both. Ratios are taken within a round, and their median counts.

- *throughput*: `--concurrency` streams at a time, closed loop: output tokens per second.
- *TTFT*: open loop, Poisson arrivals at `--share` of the throughput that vLLM showed, the same arrivals for both.

vLLM runs with one front end and with workers inside the engine processes, as Llumnix does (`--default` adds a third
server: `vllm serve --data-parallel-size N` with nothing else said). Processor time per token is printed, too: on a
machine that others use as well it is the steadier figure.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import aiohttp
from _server import Server, llumnix_server, tiny_engine_flags, vllm_server
from _stream import Stream, completion_body, open_session, served_model

THROUGHPUT, TTFT = 0.97, 1.05
PLAIN_TEXT = range(64)
"""Token ids to make prompts of: ASCII in the tiny model."""
IDLE_S = 3.0
OURS, THEIRS, DEFAULT = "llumnix", "vllm", "vllm as it comes"


@dataclass(slots=True)
class Figures:
    """Of one server, a value per round."""

    ready_s: float
    idle_cores: float = 0.0
    tokens_per_s: list[float] = field(default_factory=list)
    cpu_ms_per_token: list[float] = field(default_factory=list)
    loaded_ttft_s: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    ttft_p99_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Load:
    requests: int
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    share: float

    def streams(self, model: str, seed: int) -> list[Stream]:
        """Requests of their own random prompts, the same for the same seed."""
        rng = random.Random(seed)
        prompts = [rng.choices(PLAIN_TEXT, k=self.prompt_tokens) for _ in range(self.requests)]
        return [Stream(completion_body(model, prompt, self.output_tokens)) for prompt in prompts]


async def closed_loop(session: aiohttp.ClientSession, server: Server, streams: list[Stream], at_once: int) -> float:
    """Seconds that all took."""
    ahead = iter(streams)

    async def client() -> None:
        for stream in ahead:
            await stream.run(session, server.url)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(client())
    return time.perf_counter() - began


async def open_loop(
    session: aiohttp.ClientSession, server: Server, streams: list[Stream], arrivals_s: list[float]
) -> None:
    clock = asyncio.get_running_loop().time
    start_s = clock()
    async with asyncio.TaskGroup() as group:
        for stream, arrival_s in zip(streams, arrivals_s, strict=True):
            await asyncio.sleep(start_s + arrival_s - clock())
            group.create_task(stream.run(session, server.url))


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """Arrival times in seconds."""
    rng = random.Random(seed)
    at_s, arrivals = 0.0, []
    for _ in range(count):
        at_s += rng.expovariate(rate)
        arrivals.append(at_s)
    return arrivals


async def measure(servers: dict[str, Server], load: Load, rounds: int) -> dict[str, Figures]:
    figures = {name: Figures(server.ready_s) for name, server in servers.items()}
    async with open_session() as session:
        model = await served_model(session, servers[OURS].url)
        await all_running(session, servers[OURS])
        for server in servers.values():  # warm-up
            await closed_loop(session, server, load.streams(model, seed=-1), load.concurrency)
        await measure_idle(servers, figures)
        for round_ in range(rounds):
            for name in turns(servers, round_):
                streams = load.streams(model, seed=round_)
                cpu_s = servers[name].cpu_s()
                wall_s = await closed_loop(session, servers[name], streams, load.concurrency)
                tokens = load.requests * load.output_tokens
                figures[name].tokens_per_s.append(tokens / wall_s)
                figures[name].cpu_ms_per_token.append(1e3 * (servers[name].cpu_s() - cpu_s) / tokens)
                figures[name].loaded_ttft_s.append(statistics.median(stream.ttft_s for stream in streams))
        rate = load.share * statistics.median(figures[THEIRS].tokens_per_s) / load.output_tokens
        print(f"open loop: {rate:.1f} requests/s")
        for round_ in range(rounds):
            for name in turns(servers, round_):
                streams = load.streams(model, seed=rounds + round_)
                await open_loop(session, servers[name], streams, poisson(rate, load.requests, seed=round_))
                take_latencies(figures[name], streams, load)
    return figures


def turns(servers: dict[str, Server], round_: int) -> list[str]:
    """Who comes first changes from round to round."""
    names = list(servers)
    return names if round_ % 2 == 0 else names[::-1]


def take_latencies(mine: Figures, streams: Sequence[Stream], load: Load) -> None:
    ttfts = sorted(stream.ttft_s for stream in streams)
    mine.ttft_s.append(statistics.median(ttfts))
    mine.ttft_p99_s.append(ttfts[int(0.99 * (len(ttfts) - 1))])
    spans = [(stream.times_s[-1] - stream.times_s[0]) / (load.output_tokens - 1) for stream in streams]
    mine.tpot_s.append(statistics.median(spans))


async def measure_idle(servers: dict[str, Server], figures: dict[str, Figures]) -> None:
    """Cores that each server uses while nothing happens."""
    await asyncio.sleep(1)
    before = {name: server.cpu_s() for name, server in servers.items()}
    await asyncio.sleep(IDLE_S)
    for name, server in servers.items():
        figures[name].idle_cores = (server.cpu_s() - before[name]) / IDLE_S


async def all_running(session: aiohttp.ClientSession, server: Server) -> None:
    """Llumnix answers as soon as its first instance runs."""
    async with asyncio.timeout(120):
        while True:
            async with session.get(f"{server.url}/llumnix/v1/instances") as answer:
                rows = (await answer.json())["instances"]
            if all(row["state"] == "running" for row in rows):
                return
            await asyncio.sleep(0.1)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median [lowest-highest]."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def print_table(figures: dict[str, Figures]) -> None:
    print("Median over rounds [lowest-highest].\n")
    rows = [("", *figures)]

    def row(name: str, cells: list[str]) -> None:
        rows.append((name, *cells))

    every = list(figures.values())
    row("ready after s", [f"{mine.ready_s:.1f}" for mine in every])
    row("cores when idle", [f"{mine.idle_cores:.3f}" for mine in every])
    row("throughput tokens/s", [spread(mine.tokens_per_s, 0) for mine in every])
    row("processor ms/token", [spread(mine.cpu_ms_per_token) for mine in every])
    row("TTFT P50 ms, saturated", [spread([1e3 * value for value in mine.loaded_ttft_s], 1) for mine in every])
    row("TTFT P50 ms, open loop", [spread([1e3 * value for value in mine.ttft_s], 1) for mine in every])
    row("TTFT P99 ms, open loop", [spread([1e3 * value for value in mine.ttft_p99_s], 1) for mine in every])
    row("TPOT P50 ms, open loop", [spread([1e3 * value for value in mine.tpot_s], 2) for mine in every])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for cells in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)))


def print_goals(ours: Figures, theirs: Figures) -> bool:
    throughput = ratios(ours.tokens_per_s, theirs.tokens_per_s)
    ttft = ratios(ours.ttft_s, theirs.ttft_s)
    cpu = ratios(ours.cpu_ms_per_token, theirs.cpu_ms_per_token)
    fast, prompt = statistics.median(throughput) >= THROUGHPUT, statistics.median(ttft) <= TTFT
    print(f"\nOf {OURS} over {THEIRS}, within each round:")
    print(f"{'reached' if fast else 'MISSED '}  throughput: {spread(throughput)} (goal: at least {THROUGHPUT})")
    print(f"{'reached' if prompt else 'MISSED '}  TTFT P50, open loop: {spread(ttft)} (goal: at most {TTFT})")
    print(f"         processor time per token: {spread(cpu)}")
    return fast and prompt


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Throughput and TTFT beside vLLM's data-parallel server.")
    parser.add_argument("--instances", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="loads of each kind on each server (5)")
    parser.add_argument("--requests", type=int, default=192, help="of each load (192)")
    parser.add_argument("--concurrency", type=int, default=32, help="streams at a time, closed loop (32)")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--share", type=float, default=0.4, help="open loop: of vLLM's throughput (0.4)")
    parser.add_argument("--default", action="store_true", help="measure vLLM as it comes, too")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is missed")
    parser.add_argument("--model", help="instead of the tiny model; flags for vLLM follow behind --")
    parser.add_argument("engine_flags", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    engine = [options.model] if options.model else tiny_engine_flags()
    engine += options.engine_flags
    parallel = ("--data-parallel-size", str(options.instances))
    load = Load(options.requests, options.concurrency, options.prompt_tokens, options.output_tokens, options.share)
    with ExitStack() as stack:
        servers = {OURS: stack.enter_context(llumnix_server(engine, "--instances", str(options.instances)))}
        alike = ("--api-server-count", "1", "--distributed-executor-backend", "uni")
        servers[THEIRS] = stack.enter_context(vllm_server(engine, *parallel, *alike))
        if options.default:
            servers[DEFAULT] = stack.enter_context(vllm_server(engine, *parallel))
        figures = asyncio.run(measure(servers, load, options.rounds))
    print_table(figures)
    reached = print_goals(figures[OURS], figures[THEIRS])
    if options.check and not reached:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
