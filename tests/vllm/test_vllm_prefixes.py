"""A conversation's next turn goes where the turns before it are cached: real engines, and what they say they reused."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import aiohttp
import pytest
from frame.admin import Admin
from frame.checked import Server
from frame.stream import COMPLETIONS, open_session

pytestmark = pytest.mark.timeout(240)

CHUNK_TOKENS = 128
FLAGS = (
    *("--max-model-len", "2048", "--enable-prompt-tokens-details", "--no-migration"),
    *("--prefix-chunk-tokens", str(CHUNK_TOKENS)),
)
SESSIONS = 12


async def complete(
    session: aiohttp.ClientSession, prompt: list[int], tokens: int, **more: Any
) -> tuple[list[int], int]:
    """Its output, and how many tokens of its prompt were cached."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "return_token_ids": True}
    async with session.post(COMPLETIONS, json={**body, **more}) as answer:
        said = await answer.json()
        assert answer.status == 200, said
    details = said["usage"].get("prompt_tokens_details") or {}
    return said["choices"][0]["token_ids"], details.get("cached_tokens") or 0


def words(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(10, 250) for _ in range(count)]


async def steps_are_known(session: aiohttp.ClientSession, rng: random.Random) -> None:
    for _ in range(20):
        await asyncio.gather(*(complete(session, words(rng, rng.randint(20, 900)), 12) for _ in range(8)))
        if all(row.step_cost is not None for row in (await Admin(session).status()).instances):
            return
    raise AssertionError("the instances know nothing of their steps yet")


async def test_second_turns_find_what_the_first_left(server: Server) -> None:
    rng = random.Random(1)
    async with open_session(server.url) as session:
        await steps_are_known(session, rng)
        turns = [words(rng, rng.randint(200, 700)) for _ in range(SESSIONS)]
        outputs = await asyncio.gather(*(complete(session, turn, 150) for turn in turns))
        await asyncio.sleep(0.5)
        expected = delivered = 0
        for turn, (output, _) in rng.sample(list(zip(turns, outputs, strict=True)), SESSIONS):
            _, cached = await complete(session, turn + output + words(rng, 40), 4)
            expected += len(turn + output) // CHUNK_TOKENS * CHUNK_TOKENS
            delivered += cached
        assert delivered >= 0.9 * expected
        for turn, _ in zip(turns, range(4), strict=False):
            _, cached = await complete(session, turn + words(rng, 40), 4, cache_salt="another tenant")
            assert cached == 0
