"""Prompts on one instance and tokens on the other: real engines, the very tokens, and roles that change meanwhile."""

from __future__ import annotations

import asyncio
import random
from itertools import cycle

import aiohttp
import pytest
from frame.admin import Admin
from frame.checked import Server
from frame.stream import open_session
from test_vllm_prefixes import complete, words

from llumnix.report.records import MOVED
from llumnix.types import Role

pytestmark = pytest.mark.timeout(240)

FLAGS = ("--max-model-len", "2048", "--prefill-instances", "1")
REQUESTS = 24
LONGEST = 200


async def outputs(session: aiohttp.ClientSession, prompts: list[list[int]]) -> list[list[int]]:
    lengths = [1 + 37 * number % LONGEST for number in range(len(prompts))]
    pairs = zip(prompts, lengths, strict=True)
    made = await asyncio.gather(*(complete(session, *each, temperature=0) for each in pairs))
    return [tokens for tokens, _ in made]


async def outputs_while_roles_change(
    session: aiohttp.ClientSession, prompts: list[list[int]], instances: list[str]
) -> tuple[list[list[int]], int]:
    """And how often they have changed meanwhile."""
    changes, admin = 0, Admin(session)
    async with asyncio.TaskGroup() as group:
        made = group.create_task(outputs(session, prompts))
        for roles in cycle(((Role.DECODE, Role.PREFILL), (Role.PREFILL, Role.DECODE))):
            await asyncio.sleep(0.3)
            if made.done():
                break
            for instance, role in zip(instances, roles, strict=True):
                assert await admin.give_role(instance, role) == 200
            changes += 1
    return made.result(), changes


async def test_tokens_are_made_elsewhere_and_are_the_same_whoever_has_which_role(server: Server) -> None:
    rng = random.Random(5)
    async with open_session(server.url) as session:
        admin = Admin(session)
        first, second = (await admin.status()).instances
        assert (first.role, second.role) == (Role.PREFILL, Role.MIXED)
        prompts = [words(rng, rng.randint(20, 1500)) for _ in range(REQUESTS)]
        with_roles = await outputs(session, prompts)
        moves = [each for each in await admin.moves(1000) if each.outcome == MOVED and each.source == first.id]
        assert len(moves) >= REQUESTS // 8  # not all: memory there is short, and some end first
        assert all(each.reason.startswith("tokens are made ") for each in moves)
        while_they_change, changes = await outputs_while_roles_change(session, prompts, [first.id, second.id])
        assert while_they_change == with_roles
        assert changes >= 2
        for each in (first, second):
            assert await admin.give_role(each.id, Role.MIXED) == 200
        assert await outputs(session, prompts) == with_roles
