"""How fast an instance with many running generations can be taken away, and what its clients notice.

    python benchmarks/drain.py --streams 50
    python benchmarks/drain.py --streams 20 --family llama qwen2-vl ngram

Puts so many long generations on one of two instances of the tiny model, drains it, and lets every stream go on for a
while after that. Then the same streams undisturbed, for the same number of tokens: every token must be the same. Beside
it the same drain without migration (policy `infaas++`), which waits for the longest generation. Exit code 1 if a
stream failed, a token differs, or the instance took longer than the goal.

With --family: streams of every kind that tiny models of these families are asked (seeded, structured, with images,
several sequences, log probabilities, ...), each to its end, and the same left alone.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
from _mixed_drain import NAMES, drain, drain_kinds
from frame.admin import Admin
from frame.arguments import at_least_one, not_negative, whole
from frame.models import tiny_engine_flags
from frame.server import ServerProcess, llumnix_server
from frame.stream import Streaming, all_go_on, open_session
from frame.verdict import Figure, at_most, conclude
from rich.console import Console
from rich.table import Table

from llumnix.control.scheduler_events import DrainReport

GOAL_S = 5.0
MODEL_LEN = 8192
KV_MIB = 1800  # 50 sequences of 8192 tokens, 4 KiB each
TOKENS_BEFORE = 20
TOKENS_AFTER = 60


@dataclass(slots=True)
class Drained:
    """One drain as its clients and the server saw it."""

    report: DrainReport
    wall_s: float
    """From the order until the report was there, seen from outside."""
    tokens: list[list[int]]
    errors: list[str]
    gaps_s: list[float]
    """Between two pieces of a stream, from the order until the end of the drain."""
    left_tokens: list[int]
    """What the streams still had to say when the drain began."""


def main() -> int:
    arguments = _parse()
    if arguments.family:
        drains = [drain_kinds(name, arguments.streams, arguments.seed, GOAL_S * 12) for name in arguments.family]
        return conclude(*(figure for each in drains for figure in each.figures(GOAL_S)))
    bodies = [long_request(random.Random(f"{arguments.seed}-{n}")) for n in range(arguments.streams)]
    with serving() as server:
        drained = asyncio.run(drain_under_load(server.url, bodies, TOKENS_AFTER, GOAL_S * 12))
        print(f"drained: {drained.report}", flush=True)
        lengths = [len(tokens) for tokens in drained.tokens]
        still = asyncio.run(undisturbed(server.url, bodies, lengths))
    waited: Drained | None = None
    if arguments.longest_wait_s:
        with serving("--policy", "infaas++", "--drain-timeout-s", str(arguments.longest_wait_s)) as server:
            waited = asyncio.run(drain_under_load(server.url, bodies, 0, arguments.longest_wait_s))
    return _tell(drained, still, waited)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=at_least_one, default=50)
    parser.add_argument("--seed", type=whole, default=1)
    parser.add_argument("--family", nargs="+", metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    parser.add_argument(
        "--longest-wait-s",
        type=not_negative,
        default=240.0,
        help="Limit of the drain without migration; 0: leave it out.",
    )
    return parser.parse_args()


def serving(*flags: str) -> AbstractContextManager[ServerProcess]:
    return llumnix_server(tiny_engine_flags(MODEL_LEN, KV_MIB), *flags, instances=2)


def long_request(rng: random.Random) -> dict[str, Any]:
    """Greedy, up to the end of the window: thousands of tokens."""
    prompt = [rng.randrange(256) for _ in range(rng.randint(30, 600))]
    most = rng.randint(3000, MODEL_LEN - len(prompt))
    return {"prompt": prompt, "max_tokens": most, "temperature": 0, "ignore_eos": True}


def _session(url: str) -> aiohttp.ClientSession:
    """Without a limit on the time of a stream: minutes are the point."""
    return open_session(url, timeout_s=None)


async def drain_under_load(url: str, bodies: list[dict[str, Any]], tokens_after: int, limit_s: float) -> Drained:
    """All streams on the first instance; it is drained when each has begun."""
    async with _session(url) as session:
        streams = [Streaming(session, body, name=f"s{n}", engine=0) for n, body in enumerate(bodies)]
        for stream in streams:
            await stream.reaches(TOKENS_BEFORE)
        left = [body["max_tokens"] - stream.output.tokens for body, stream in zip(bodies, streams, strict=True)]
        began_s = time.monotonic()
        report = await drain(Admin(session), limit_s)
        ended_s = time.monotonic()
        if tokens_after:
            await all_go_on(streams, tokens_after)
        await asyncio.gather(*(stream.cancel() for stream in streams))
        outputs = [stream.output for stream in streams]
    return Drained(
        report=report,
        wall_s=ended_s - began_s,
        tokens=[output.sequences[0].tokens for output in outputs],
        errors=[output.error for output in outputs if output.error],
        gaps_s=[gap for output in outputs for gap in output.gaps_s(began_s, ended_s)],
        left_tokens=left,
    )


async def undisturbed(url: str, bodies: list[dict[str, Any]], lengths: list[int]) -> list[list[int]]:
    """Tokens of the same requests, left alone: of each as many as `lengths` says."""
    async with _session(url) as session:
        streams = [
            Streaming(session, {**body, "max_tokens": length, "cache_salt": "undisturbed"}, name=f"u{n}")
            for n, (body, length) in enumerate(zip(bodies, lengths, strict=True))
        ]
        outputs = [await stream for stream in streams]
    return [output.sequences[0].tokens for output in outputs]


def differing_tokens(tokens: list[list[int]], others: list[list[int]]) -> int:
    """Of streams that are as long as each other."""
    pairs = zip(tokens, others, strict=True)
    return sum(mine != theirs for one, other in pairs for mine, theirs in zip(one, other, strict=True))


def _tell(drained: Drained, still: list[list[int]], waited: Drained | None) -> int:
    table = Table("", "with migration", "without")
    rows: list[tuple[str, Any, Any]] = [
        ("running when it began", drained.report.requests, waited and waited.report.requests),
        ("tokens still to come, longest", max(drained.left_tokens), waited and max(waited.left_tokens)),
        ("empty after s", f"{drained.report.seconds:.2f}", waited and _seconds(waited.report)),
        ("moved", drained.report.moved, waited and waited.report.moved),
        ("replayed", drained.report.replayed, waited and waited.report.replayed),
        ("finished there", drained.report.finished, waited and waited.report.finished),
        ("gap P50 / P99 / max, ms", _gap_figures(drained.gaps_s), ""),
    ]
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    console = Console()
    console.print(table)
    for error in sorted(set(drained.errors)):
        console.print(error, markup=False)
    return conclude(
        Figure("running when it began", drained.report.requests),
        Figure("empty after", _empty_s(drained), at_most(GOAL_S), "s"),
        Figure("moved", drained.report.moved),
        Figure("replayed", drained.report.replayed),
        Figure("failed streams", len(drained.errors), at_most(0)),
        Figure("tokens compared", sum(map(len, still))),
        Figure("differing tokens", differing_tokens(drained.tokens, still), at_most(0)),
        Figure("without migration: empty after", None if waited is None else _empty_s(waited), unit="s"),
    )


def _empty_s(one: Drained) -> float | None:
    return one.report.seconds if one.report.outcome == "empty" else None


def _seconds(report: DrainReport) -> str:
    return f"{report.seconds:.1f}" if report.outcome == "empty" else f"more than {report.seconds:.0f}"


def _gap_figures(gaps_s: list[float]) -> str:
    if not gaps_s:
        return ""
    p50, p99 = np.percentile(gaps_s, [50, 99])
    return f"{p50 * 1e3:.0f} / {p99 * 1e3:.0f} / {max(gaps_s) * 1e3:.0f}"


if __name__ == "__main__":
    sys.exit(main())
