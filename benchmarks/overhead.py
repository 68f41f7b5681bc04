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
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field

import aiohttp
from frame.arguments import at_least_one, positive
from frame.models import tiny_engine_flags
from frame.server import ServerProcess, llumnix_server, vllm_server
from frame.stream import COMPLETIONS, Output, exactly, open_session, served_model, stream
from frame.verdict import Figure, at_least, at_most, conclude, median
from frame.vitals import cpu_s

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

    def bodies(self, model: str, seed: int) -> list[bytes]:
        """Requests of their own random prompts, the same for the same seed."""
        rng = random.Random(seed)
        prompts = [rng.choices(PLAIN_TEXT, k=self.prompt_tokens) for _ in range(self.requests)]
        return [exactly(model, prompt, self.output_tokens) for prompt in prompts]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the servers that are compared."""

    server: ServerProcess
    session: aiohttp.ClientSession

    async def complete(self, body: bytes) -> Output:
        output = await stream(self.session, COMPLETIONS, body)
        if output.failure:
            raise SystemExit(f"a request failed: {output.failure}")
        return output

    def cpu_s(self) -> float:
        return cpu_s(self.server.processes())


async def closed_loop(side: Side, bodies: list[bytes], at_once: int) -> tuple[list[Output], float]:
    """What came, and the seconds that all took."""
    ahead = iter(bodies)
    outputs: list[Output] = []

    async def client() -> None:
        for body in ahead:
            outputs.append(await side.complete(body))

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(client())
    return outputs, time.perf_counter() - began_s


async def open_loop(side: Side, bodies: list[bytes], arrivals_s: list[float]) -> list[Output]:
    """What came, as if each had been sent when it was due: a client that is late makes nobody look better."""
    clock = asyncio.get_running_loop().time
    start_s = clock()
    tasks = []
    async with asyncio.TaskGroup() as group:
        for body, arrival_s in zip(bodies, arrivals_s, strict=True):
            await asyncio.sleep(start_s + arrival_s - clock())
            tasks.append(group.create_task(side.complete(body)))
    outputs = [task.result() for task in tasks]
    for output, arrival_s in zip(outputs, arrivals_s, strict=True):
        output.sent_s = start_s + arrival_s
    return outputs


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """Arrival times in seconds."""
    rng = random.Random(seed)
    at_s, arrivals = 0.0, []
    for _ in range(count):
        at_s += rng.expovariate(rate)
        arrivals.append(at_s)
    return arrivals


async def measure(servers: dict[str, ServerProcess], load: Load, rounds: int) -> dict[str, Figures]:
    figures = {name: Figures(server.ready_s) for name, server in servers.items()}
    async with AsyncExitStack() as stack:
        sides: dict[str, Side] = {}
        for name, server in servers.items():
            session = open_session(server.url, timeout_s=None, keep_alive=True)
            sides[name] = Side(server, await stack.enter_async_context(session))
        model = await served_model(sides[OURS].session)
        for side in sides.values():  # warm-up
            await closed_loop(side, load.bodies(model, seed=-1), load.concurrency)
        await measure_idle(sides, figures)
        for round_ in range(rounds):
            for name in turns(sides, round_):
                await measure_throughput(sides[name], load, load.bodies(model, seed=round_), figures[name])
        rate = load.share * statistics.median(figures[THEIRS].tokens_per_s) / load.output_tokens
        print(f"open loop: {rate:.1f} requests/s")
        for round_ in range(rounds):
            for name in turns(sides, round_):
                bodies = load.bodies(model, seed=rounds + round_)
                outputs = await open_loop(sides[name], bodies, poisson(rate, load.requests, seed=round_))
                take_latencies(figures[name], outputs, load)
    return figures


async def measure_throughput(side: Side, load: Load, bodies: list[bytes], mine: Figures) -> None:
    before_s = side.cpu_s()
    outputs, wall_s = await closed_loop(side, bodies, load.concurrency)
    tokens = load.requests * load.output_tokens
    mine.tokens_per_s.append(tokens / wall_s)
    mine.cpu_ms_per_token.append(1e3 * (side.cpu_s() - before_s) / tokens)
    mine.loaded_ttft_s.append(statistics.median(output.ttft_s for output in outputs))


def turns(sides: dict[str, Side], round_: int) -> list[str]:
    """Who comes first changes from round to round."""
    names = list(sides)
    return names if round_ % 2 == 0 else names[::-1]


def take_latencies(mine: Figures, outputs: Sequence[Output], load: Load) -> None:
    ttfts = sorted(output.ttft_s for output in outputs)
    mine.ttft_s.append(statistics.median(ttfts))
    mine.ttft_p99_s.append(ttfts[int(0.99 * (len(ttfts) - 1))])
    spans = [(output.times_s[-1] - output.times_s[0]) / (load.output_tokens - 1) for output in outputs]
    mine.tpot_s.append(statistics.median(spans))


async def measure_idle(sides: dict[str, Side], figures: dict[str, Figures]) -> None:
    """Cores that each server uses while nothing happens."""
    await asyncio.sleep(1)
    before = {name: side.cpu_s() for name, side in sides.items()}
    await asyncio.sleep(IDLE_S)
    for name, side in sides.items():
        figures[name].idle_cores = (side.cpu_s() - before[name]) / IDLE_S


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


def judged(ours: Figures, theirs: Figures) -> tuple[Figure, ...]:
    """Of ours over theirs, within each round."""
    throughput = ratios(ours.tokens_per_s, theirs.tokens_per_s)
    ttft = ratios(ours.ttft_s, theirs.ttft_s)
    cpu = ratios(ours.cpu_ms_per_token, theirs.cpu_ms_per_token)
    return (
        median(f"throughput, {OURS} / {THEIRS}", throughput, at_least(THROUGHPUT)),
        median(f"TTFT P50, open loop, {OURS} / {THEIRS}", ttft, at_most(TTFT)),
        median(f"processor time per token, {OURS} / {THEIRS}", cpu),
        median(f"throughput, {OURS}", ours.tokens_per_s, unit="tokens/s"),
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Throughput and TTFT beside vLLM's data-parallel server.")
    parser.add_argument("--instances", type=at_least_one, default=2)
    parser.add_argument("--rounds", type=at_least_one, default=5, help="loads of each kind on each server (5)")
    parser.add_argument("--requests", type=at_least_one, default=192, help="of each load (192)")
    parser.add_argument("--concurrency", type=at_least_one, default=32, help="streams at a time, closed loop (32)")
    parser.add_argument("--prompt-tokens", type=at_least_one, default=64)
    parser.add_argument("--output-tokens", type=at_least_one, default=64)
    parser.add_argument("--share", type=positive, default=0.4, help="open loop: of vLLM's throughput (0.4)")
    parser.add_argument("--default", action="store_true", help="measure vLLM as it comes, too")
    parser.add_argument("--model", help="instead of the tiny model; flags for vLLM follow behind --")
    parser.add_argument("engine_flags", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = parse()
    engine = [options.model] if options.model else tiny_engine_flags()
    engine += options.engine_flags
    parallel = ("--data-parallel-size", str(options.instances))
    load = Load(options.requests, options.concurrency, options.prompt_tokens, options.output_tokens, options.share)
    with ExitStack() as stack:
        servers = {OURS: stack.enter_context(llumnix_server(engine, instances=options.instances))}
        alike = ("--api-server-count", "1", "--distributed-executor-backend", "uni")
        servers[THEIRS] = stack.enter_context(vllm_server(engine, *parallel, *alike))
        if options.default:
            servers[DEFAULT] = stack.enter_context(vllm_server(engine, *parallel))
        figures = asyncio.run(measure(servers, load, options.rounds))
    print_table(figures)
    return conclude(*judged(figures[OURS], figures[THEIRS]))


if __name__ == "__main__":
    sys.exit(main())
