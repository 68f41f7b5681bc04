"""A conversation's next turn goes where the turns before it are cached: real engines, and what they say they reused."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import Any

import aiohttp
import pytest
from frame.admin import Admin
from frame.checked import Server
from frame.server import wait_for
from frame.stream import COMPLETIONS, Streaming, open_session

from llumnix.report.records import MigrationRecord

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


async def test_drained_request_goes_where_its_prompt_is_cached_and_that_is_not_copied(server: Server) -> None:
    rng = random.Random(7)
    asked = {"prompt": words(rng, 700), "max_tokens": 400, "ignore_eos": True}
    async with open_session(server.url) as session:
        await steps_are_known(session, rng)  # before, requests are placed by memory alone

        async def emptied(number: int) -> MigrationRecord:
            """A stream with this prompt, whose instance is emptied while it runs: its move."""
            stream = Streaming(session, asked, name=f"drained-{number}")
            await stream.reaches(5)
            (row,) = server.requests()
            path = f"/llumnix/v1/instances/{row['instance']}"
            assert server.post(f"{path}/drain?keep=true").status_code == 202
            kept = partial(wait_for, lambda: server.instance(row["instance"])["load"] == "kept", "an empty instance")
            await asyncio.to_thread(kept)
            assert (await stream).error == ""
            assert server.post(f"{path}/undrain").status_code == 202
            back = partial(wait_for, lambda: server.instance(row["instance"])["state"] == "running", "its return")
            await asyncio.to_thread(back)
            return (await Admin(session).moves(1))[0]

        first, second = [await emptied(number) for number in range(2)]
    assert "its prompt is cached there" not in first.reason
    assert "its prompt is cached there" in second.reason
    assert second.blocks_skipped > 0
