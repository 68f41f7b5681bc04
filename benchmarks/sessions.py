"""What placing by cached prefix, and roles, do to live streams: conversations on engines that pace themselves.

    python benchmarks/sessions.py

*Sessions*: each client asks, reads, waits and asks again, with all that was said before in front: on two instances of
Llumnix, and of `vllm serve --data-parallel-size`. Delivered are the tokens of a prompt that its instance had cached (as
vLLM says of each request), of those that were computed for the session before, in whole blocks. Sessions of one server
at a time, in turns, each time with words that nobody has said before.

*Hand-overs*: one instance for prompts, one for tokens; each stream changes with its first token. Gaps are the client's:
the one in which the stream changed, in normal steps of the same stream. Alone on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise

import aiohttp
import numpy as np
from frame.admin import Admin
from frame.arguments import at_least_one
from frame.models import paced_engine_flags
from frame.server import ServerProcess, llumnix_server, vllm_server
from frame.stream import COMPLETIONS, Output, open_session, stream
from frame.verdict import Figure, at_least, at_most, conclude, median

from llumnix.control.orders import MoveCause

BLOCK_TOKENS = 32
STEP_MS, TOKEN_MS = 20.0, 0.2
SESSIONS, TURNS = 24, 3
FIRST_PROMPT, FURTHER_PROMPT, OUTPUT_TOKENS = (200, 600), (20, 60), 60
THINKING_S = (0.5, 2.0)
SESSIONS_PER_S = 2.0
HANDED_OVER, HANDED_OVER_PER_S = 120, 3.0
WORDS = range(10, 250)
OURS, VLLM = "llumnix", "vllm serve, data parallel"


@dataclass(slots=True)
class Turns:
    """Second turns and later ones."""

    expected: int = 0
    delivered: int = 0
    ttfts_s: list[float] = field(default_factory=list)


async def talk(session: aiohttp.ClientSession, rng: random.Random, seen: Turns) -> None:
    said: list[int] = []
    for turn in range(TURNS):
        before = len(said)
        said += rng.choices(WORDS, k=rng.randint(*(FURTHER_PROMPT if turn else FIRST_PROMPT)))
        output = await complete(session, said, OUTPUT_TOKENS)
        if turn:
            seen.expected += (before - 1) // BLOCK_TOKENS * BLOCK_TOKENS  # the last token's KV is computed by nobody
            seen.delivered += output.cached_tokens
            seen.ttfts_s.append(output.ttft_s)
        said += output.sequences[0].tokens
        await asyncio.sleep(rng.uniform(*THINKING_S))


async def complete(
    session: aiohttp.ClientSession, prompt: Sequence[int], tokens: int, name: str | None = None
) -> Output:
    body = {"prompt": list(prompt), "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    output = await stream(session, COMPLETIONS, body, name=name)
    if output.failure:
        raise SystemExit(f"a stream failed: {output.failure}")
    return output


async def talk_all(url: str, seed: int) -> Turns:
    seen, rng = Turns(), random.Random(seed)
    async with open_session(url) as session, asyncio.TaskGroup() as group:
        for number in range(SESSIONS):
            group.create_task(talk(session, random.Random(f"{seed}-{number}"), seen))
            await asyncio.sleep(rng.expovariate(SESSIONS_PER_S))
    return seen


def sessions(servers: dict[str, ServerProcess], rounds: int) -> list[Figure]:
    seen: dict[str, list[Turns]] = {name: [] for name in servers}
    for turn in range(-1, rounds):
        for name in sorted(servers, reverse=bool(turn % 2)):
            turns = asyncio.run(talk_all(servers[name].url, 2 * turn + (name == OURS)))
            if turn >= 0:  # the first is to learn what a step costs
                seen[name].append(turns)
    figures = []
    for name, rounds_of_it in seen.items():
        shares = [each.delivered / each.expected for each in rounds_of_it]
        goal = at_least(0.9) if name == OURS else None
        figures.append(median(f"{name}: delivered of what was computed before", shares, goal))
        means = [1e3 * statistics.mean(each.ttfts_s) for each in rounds_of_it]
        figures.append(median(f"{name}: first token of later turns, mean", means, unit="ms"))
    pairs = zip(seen[OURS], seen[VLLM], strict=True)
    ratios = [statistics.mean(ours.ttfts_s) / statistics.mean(theirs.ttfts_s) for ours, theirs in pairs]
    return [*figures, median(f"… {OURS} / {VLLM}", ratios, unit="×")]


async def handovers(url: str) -> list[Figure]:
    rng = random.Random(5)
    outputs: list[asyncio.Task[Output]] = []
    behind_s = time.time() - time.monotonic()
    async with open_session(url) as session:
        admin = Admin(session)
        async with asyncio.TaskGroup() as group:
            for number in range(HANDED_OVER):
                prompt = rng.choices(WORDS, k=rng.randint(*FIRST_PROMPT))
                outputs.append(group.create_task(complete(session, prompt, OUTPUT_TOKENS, f"handed-{number}")))
                await asyncio.sleep(rng.expovariate(HANDED_OVER_PER_S))
        moves = {move.request_id: move for move in await admin.moves(4 * HANDED_OVER) if move.outcome == "moved"}
    steps, made_before = [], []
    for output in (task.result() for task in outputs):
        move = moves.get(output.id)
        if move is not None and move.cause == MoveCause.DECODE:
            gaps = list(pairwise(output.times_s))
            place = next(place for place, (_, later) in enumerate(gaps) if later >= move.at_s - behind_s)
            made_before.append(place + 1)
            changed = gaps[place][1] - gaps[place][0]
            steps.append(changed / statistics.median(later - earlier for earlier, later in gaps[5:]))
    return [
        Figure("hand-overs, of streams", len(steps), at_least(0.9 * HANDED_OVER)),
        Figure("tokens made before, P50", float(np.percentile(made_before, 50)) if steps else None),
        Figure("… P99", float(np.percentile(made_before, 99)) if steps else None),
        Figure("gap at a hand-over, P50", float(np.percentile(steps, 50)) if steps else None, unit="steps"),
        Figure("… P99", float(np.percentile(steps, 99)) if steps else None, at_most(2.0), "steps"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least_one, default=3, help="Of sessions. Default: 3.")
    values = parser.parse_args()
    with paced_engine_flags(STEP_MS, TOKEN_MS, max_model_len=2048, kv_mib=96) as engine:
        engine = [*engine, "--max-num-seqs", "64", "--max-num-batched-tokens", "512", "--enable-prompt-tokens-details"]
        with ExitStack() as running:
            servers = {
                OURS: running.enter_context(llumnix_server(engine, instances=2)),
                VLLM: running.enter_context(
                    vllm_server(engine, "--data-parallel-size", "2", "--api-server-count", "1")
                ),
            }
            figures = sessions(servers, values.rounds)
        with llumnix_server(engine, "--prefill-instances", "1", "--decode-instances", "1", instances=2) as server:
            figures += asyncio.run(handovers(server.url))
    return conclude(*figures)


if __name__ == "__main__":
    sys.exit(main())
