"""Whether streams say what undisturbed ones say: moved about, when their instance is killed, when it is drained."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import numpy as np
from drain import differing_tokens, drain_under_load, undisturbed
from failover import gap_across
from frame import equality as streams
from frame.admin import Admin
from frame.kinds import make
from frame.server import START_TIMEOUT_S
from frame.stream import COMPLETIONS, Streaming, all_go_on, open_session, stream
from frame.verdict import Figure, at_least, at_most

from proof.site import Site

KINDS = ("greedy", "greedy", "greedy", "long prompt", "stop string", "seeded top_p", "seeded top_k min_p")
MOST_MOVES = 3
RESTLESS = 4
CONTROLS = 4
_PROBE_TOKENS = 40
TOKENS_BEFORE, TOKENS_AFTER = 20, 40
DRAIN_S = 5.0
_DRAIN_LIMIT_S = 30.0
_POLL_S = 0.1


@dataclass(slots=True)
class Neighbours:
    """Short streams that come and go beside what is looked at. Where one has stopped, the step in flight still writes
    into blocks that are free: the next request that moves in gets just those."""

    ended: int = 0
    failures: list[str] = field(default_factory=list)


@asynccontextmanager
async def restless(session: aiohttp.ClientSession, at_once: int) -> AsyncIterator[Neighbours]:
    """Meanwhile so many run all the time. Each stops at random: by its length, or because its client leaves."""
    seen = Neighbours()

    async def come_and_go(rng: random.Random) -> None:
        while True:
            body = {"prompt": rng.choices(range(256), k=rng.randint(8, 200)), "max_tokens": rng.randint(1, 40)}
            patience_s = rng.uniform(0.02, 0.5) if rng.random() < 0.3 else 60.0
            with contextlib.suppress(TimeoutError):
                output = await asyncio.wait_for(stream(session, COMPLETIONS, body), patience_s)
                seen.failures += [output.failure] if output.failure else []
            seen.ended += 1

    tasks = [asyncio.create_task(come_and_go(random.Random(f"restless-{n}"))) for n in range(at_once)]
    try:
        yield seen
    finally:
        for task in tasks:
            task.cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(end, asyncio.CancelledError):
                seen.failures.append(f"{type(end).__name__}: {end}")


async def equality(site: Site) -> list[Figure]:
    amount = site.amount
    probes = [make(kind, random.Random(n)).shortened(_PROBE_TOKENS) for n, kind in enumerate(KINDS[-CONTROLS:])]
    async with open_session(site.url) as session:
        async with restless(session, RESTLESS) as neighbours:
            beside = await asyncio.gather(
                *(streams.undisturbed(session, each, f"beside-{n}") for n, each in enumerate(probes))
            )
            rows = await streams.compare(
                session,
                amount.requests,
                seed=1,
                concurrency=amount.at_once,
                kinds=KINDS,
                most_moves=MOST_MOVES,
                most_tokens=amount.most_tokens,
            )
        alone = [await streams.undisturbed(session, each, f"alone-{n}") for n, each in enumerate(probes)]
        seen = [await _other_beginning_is_seen(session, number) for number in range(CONTROLS)]
    unmoved = sum(
        streams.differences(one.sequences[0], other.sequences[0])[0] for one, other in zip(beside, alone, strict=True)
    )
    for problem in [f"{row.kind}: {problem}" for row in rows for problem in row.problems] + neighbours.failures:
        print(problem)
    problems = sum(len(row.problems) for row in rows) + len(neighbours.failures)
    return [
        Figure("equality: requests", sum(row.requests for row in rows)),
        Figure("equality: moves", sum(row.moves for row in rows), at_least(1)),
        Figure("equality: neighbours that stopped meanwhile", neighbours.ended, at_least(1)),
        Figure("equality: tokens", sum(row.tokens for row in rows)),
        Figure("equality: tokens that differ without a move, beside others and alone", unmoved, at_most(0)),
        Figure("equality: differing tokens", sum(row.differing_tokens for row in rows), at_most(0)),
        Figure("equality: other problems", problems, at_most(0)),
        Figure(f"equality: other beginnings that were seen, of {CONTROLS}", sum(seen), at_least(CONTROLS)),
    ]


async def _other_beginning_is_seen(session: aiohttp.ClientSession, number: int) -> bool:
    """The negative control: a prompt that differs in its first byte alone goes on differently, so what lies in the
    first block of the cache decides."""
    kind = make("long prompt", random.Random(number)).shortened(_PROBE_TOKENS)
    text = str(kind.body["prompt"])
    other = replace(kind, body=kind.body | {"prompt": f"{'A' if text[0] != 'A' else 'B'}{text[1:]}"})
    said = [await streams.undisturbed(session, each, f"control-{number}") for each in (kind, other)]
    return said[0].sequences[0].tokens != said[1].sequences[0].tokens


def _long_requests(count: int) -> list[dict[str, Any]]:
    """Longer than anybody waits for, every other one drawn with a seed."""
    rng = random.Random(count)
    prompts = [rng.choices(range(256), k=rng.randint(30, 200)) for _ in range(count)]
    return [
        {"prompt": prompt, "max_tokens": 8000, "ignore_eos": True, "temperature": n % 2, "seed": n}
        for n, prompt in enumerate(prompts)
    ]


async def drain(site: Site) -> list[Figure]:
    """Of the instance that has all the streams."""
    async with open_session(site.url) as session:
        await _until_two_run(Admin(session))
    bodies = _long_requests(site.amount.drained)
    drained = await drain_under_load(site.url, bodies, TOKENS_AFTER, _DRAIN_LIMIT_S)
    still = await undisturbed(site.url, bodies, [len(tokens) for tokens in drained.tokens])
    report = drained.report
    p99_ms = 1e3 * float(np.percentile(drained.gaps_s, 99)) if drained.gaps_s else None
    return [
        Figure("drain: running when it began", report.requests, at_least(len(bodies))),
        Figure("drain: empty after", report.seconds if report.outcome == "empty" else None, at_most(DRAIN_S), "s"),
        Figure("drain: moved", report.moved, at_least(1)),
        Figure("drain: gap P99", p99_ms, unit="ms"),
        Figure("drain: failed streams", len(drained.errors), at_most(0)),
        Figure("drain: tokens compared", sum(map(len, still))),
        Figure("drain: differing tokens", differing_tokens(drained.tokens, still), at_most(0)),
    ]


async def kill(site: Site) -> list[Figure]:
    """SIGKILL to the instance that has all the streams."""
    bodies = _long_requests(site.amount.killed)
    async with open_session(site.url, timeout_s=None) as session:
        admin = Admin(session)
        running = [Streaming(session, body, name=f"k{n}", engine=0) for n, body in enumerate(bodies)]
        for each in running:
            await each.reaches(TOKENS_BEFORE)
        instance = await admin.where(running[0].id)
        pid = next(row.pid for row in (await admin.status()).instances if row.id == instance)
        assert pid is not None
        killed_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        two_again = asyncio.create_task(_until_two_run(admin, but=pid))
        await all_go_on(running, TOKENS_AFTER)
        await asyncio.gather(*(each.cancel() for each in running))
        outputs = [each.output for each in running]
        tokens = [output.sequences[0].tokens for output in outputs]
        still = await undisturbed(site.url, bodies, [len(each) for each in tokens])
        two_again_s = await two_again - killed_s
    gaps_s = [gap_across(output, killed_s) for output in outputs if output.times_s[-1] > killed_s]
    errors = [output.error for output in outputs if output.error]
    for error in sorted(set(errors)):
        print(f"kill: {error}")
    return [
        Figure("kill: streams", len(bodies)),
        Figure("kill: stood still, P50", 1e3 * float(np.median(gaps_s)) if gaps_s else None, unit="ms"),
        Figure("kill: failed streams", len(errors), at_most(0)),
        Figure("kill: tokens compared", sum(map(len, still))),
        Figure("kill: differing tokens", differing_tokens(tokens, still), at_most(0)),
        Figure("kill: two instances again after", two_again_s, unit="s"),
    ]


async def _until_two_run(admin: Admin, *, but: int | None = None) -> float:
    """Beside the process `but`; returns when, by the monotonic clock."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            rows = (await admin.status()).instances
            if sum(row.state == "running" and row.pid != but for row in rows) >= 2:
                return time.monotonic()
            await asyncio.sleep(_POLL_S)
