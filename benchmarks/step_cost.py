"""What an instance says its steps take, beside what they take: on a real engine, seen by clients.

    python benchmarks/step_cost.py

One instance of the tiny model. After a warm-up of mixed load, streams of several lengths and numbers decode together,
and each look at the instance (`token_s`) is compared with the gaps between their tokens just then; then single prompts
of several lengths come on top, and the time to each one's first token is compared with what was to be expected when it
was sent. Prints the errors relative to what was measured. Exit code 1 if half of the steps are off by more than 15 %.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Sequence

import aiohttp
from frame.admin import Admin
from frame.arguments import whole
from frame.models import paced_engine_flags, tiny_engine_flags
from frame.server import llumnix_server
from frame.stream import COMPLETIONS, Output, exactly, open_session, stream
from frame.verdict import Figure, at_most, conclude

from llumnix.api.bodies import InstanceRow

BATCHES = (1, 4, 12)
CONTEXTS = (50, 800)
PROMPTS = (40, 300, 900, 1800)
WINDOW_S = 0.3
GOAL_PERCENT = 15


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--paced", action="store_true", help="A model whose steps take 20 ms and 0.2 ms a token.")
    parser.add_argument("--seed", type=whole, default=1)
    arguments = parser.parse_args()
    flags = ("--no-enable-prefix-caching", "--max-num-batched-tokens", "512", "--max-num-seqs", "32")
    if arguments.paced:
        with paced_engine_flags(20.0, 0.2, max_model_len=2048, kv_mib=64) as engine_flags:
            steps, firsts = _measure(engine_flags, flags, arguments.seed)
    else:
        steps, firsts = _measure(tiny_engine_flags(max_model_len=2048), flags, arguments.seed)
    return conclude(
        Figure("steps looked at", len(steps)),
        Figure("step, off by, P50", 100 * statistics.median(steps), at_most(GOAL_PERCENT), "%"),
        Figure("step, off by, P90", 100 * statistics.quantiles(steps, n=10)[-1], unit="%"),
        Figure("first token, off by, P50", 100 * statistics.median(firsts), unit="%"),
        Figure("first token, off by, P90", 100 * statistics.quantiles(firsts, n=10)[-1], unit="%"),
    )


def _measure(engine_flags: Sequence[str], flags: Sequence[str], seed: int) -> tuple[list[float], list[float]]:
    with llumnix_server(engine_flags, *flags, instances=1) as server:
        return asyncio.run(_look(server.url, random.Random(seed)))


async def _look(url: str, rng: random.Random) -> tuple[list[float], list[float]]:
    """Relative errors of steps, and of first tokens."""
    steps: list[float] = []
    firsts: list[float] = []
    async with open_session(url) as session:
        await asyncio.gather(*(_stream(session, rng, rng.choice(PROMPTS), 24, k * 0.05) for k in range(60)))
        for batch in BATCHES:
            for context in CONTEXTS:
                streams = asyncio.gather(*(_stream(session, rng, context, 150) for _ in range(batch)))
                looks = await _looks(Admin(session), streams)
                steps += _errors(looks, await streams)
        for prompt in PROMPTS * 3:
            load = asyncio.gather(*(_stream(session, rng, 300, 60) for _ in range(4)))
            await asyncio.sleep(WINDOW_S)
            row = (await Admin(session).status()).instances[0]
            ours = await _stream(session, rng, prompt, 1)
            await load
            assert row.first_token_s is not None
            assert row.step_cost is not None
            expected_s = row.first_token_s + row.step_cost.prefill_token_us * prompt / 1e6
            firsts.append(abs(expected_s / ours.ttft_s - 1))
    return steps, firsts


async def _stream(
    session: aiohttp.ClientSession, rng: random.Random, prompt: int, tokens: int, after_s: float = 0.0
) -> Output:
    await asyncio.sleep(after_s)
    body = exactly("tiny", [rng.randrange(10, 250) for _ in range(prompt)], tokens)
    output = await stream(session, COMPLETIONS, body)
    assert output.complete, output.failure
    return output


async def _looks(admin: Admin, streams: asyncio.Future[list[Output]]) -> list[tuple[float, InstanceRow]]:
    looks = []
    while not streams.done():
        looks.append((time.monotonic(), (await admin.status()).instances[0]))
        await asyncio.sleep(WINDOW_S / 3)
    return looks


def _errors(looks: list[tuple[float, InstanceRow]], streams: list[Output]) -> list[float]:
    """Where all of them decoded and nobody else, from the look to the end of the window."""
    errors = []
    for at_s, row in looks:
        gaps = [gap for output in streams for gap in output.gaps_s(at_s, at_s + WINDOW_S)]
        whole = all(output.times_s[0] < at_s and at_s + WINDOW_S < output.times_s[-1] for output in streams)
        if gaps and whole and row.token_s is not None:
            errors.append(abs(row.token_s / statistics.mean(gaps) - 1))
    return errors


if __name__ == "__main__":
    sys.exit(main())
