"""Drafts from a model with a KV cache of its own, which goes along: here the model itself, so that each is accepted."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from frame.checked import Server
from frame.equality import Plan, compare, moving
from frame.kinds import make
from frame.stream import open_session

from llumnix import tiny_model

pytestmark = [pytest.mark.timeout(240), pytest.mark.vllm]

KINDS = ("greedy", "logprobs", "long prompt", "cached prefix")
MOVES_AFTER_62_TOKENS = 16
"""A seed of `Plan`."""


def flags(folder: Path) -> tuple[str, ...]:
    drafter = {"method": "draft_model", "model": str(tiny_model.ensure()), "num_speculative_tokens": 3}
    window = ("--max-model-len", "4096")  # a token takes twice the KV
    usual = ("--no-migration", "--max-num-batched-tokens", "512", "--speculative-config", json.dumps(drafter))
    return *usual, *window


async def test_moved_streams_say_what_undisturbed_ones_say(server: Server) -> None:
    async with open_session(server.url) as session:
        rows = await compare(session, len(KINDS), seed=6, kinds=KINDS)
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    # Streams that are drafted for are soon over, maybe before their order arrives.
    assert len([row for row in rows if row.moves]) >= len(KINDS) // 2
    server.wait_until_quiet()


async def test_drafts_are_as_good_after_a_move(server: Server) -> None:
    """A drafter that finds nothing of the tokens before it guesses."""
    drafted, accepted = server.drafted(), server.drafted("accepted")
    instances = [row["id"] for row in server.instances()]
    plan = Plan(instances, random.Random(MOVES_AFTER_62_TOKENS), most_moves=1)
    async with open_session(server.url) as session:
        _, moves = await moving(session, make("greedy", random.Random(1)), "drafted", plan)
    assert moves.made == 1
    assert server.drafted("accepted") - accepted > 0.85 * (server.drafted() - drafted)
