"""Layers with a sliding window beside others, and a logits processor of somebody's own."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from pathlib import Path

import pytest
import quiet_processor
from frame.admin import Admin
from frame.checked import Server
from frame.equality import Plan, assert_moved, compare, moving, undisturbed
from frame.kinds import Kind, greedy
from frame.server import wait_for
from frame.stream import COMPLETIONS, Streaming, open_session

pytestmark = [pytest.mark.timeout(240), pytest.mark.nightly]

WINDOW = {"sliding_window": 96, "layer_types": ["sliding_attention", "full_attention"] * 2}
FLAGS = (
    *("--no-migration", "--max-num-batched-tokens", "512", "--hf-overrides", json.dumps(WINDOW)),
    *("--logits-processors", "quiet_processor:QuietProcessor"),
)
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}


async def test_streams_move_that_have_left_their_window(server: Server) -> None:
    """Two groups of blocks, one of which gives back what is behind the window."""
    async with open_session(server.url) as session:
        rows = await compare(session, 12, seed=5, kinds=("greedy", "seeded top_p", "long prompt", "cached prefix"))
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    assert_moved(rows)


BODY = greedy(6, 300, words=30)
LOUD = Kind("loud", COMPLETIONS, BODY)
QUIET = Kind("quiet", COMPLETIONS, BODY | {"vllm_xargs": {"quiet": 1}})


async def test_logits_processor_sees_the_whole_output_of_one_that_moved(server: Server) -> None:
    async with open_session(server.url) as session:
        moved, moves = await moving(session, QUIET, "moved", Plan(["i0", "i1"], random.Random(7)))
        said = [(await undisturbed(session, kind, kind.name)).sequences[0].tokens for kind in (QUIET, LOUD)]
    tokens = moved.sequences[0].tokens
    assert moves.made
    assert tokens == said[0]
    assert [_heard_again(each) for each in (tokens, said[1])] == [False, True]


async def test_logits_processor_sees_the_whole_output_of_one_whose_instance_died(server: Server) -> None:
    async with open_session(server.url) as session:
        still = await undisturbed(session, QUIET, "still")
        replayed = Streaming(session, QUIET.body, name="replayed")
        await replayed.reaches(quiet_processor.FEW * 3)
        owner = await Admin(session).where(replayed.id)
        assert owner is not None
        server.signal_instance(owner, signal.SIGKILL)
        output = await replayed
    assert output.error == ""
    assert output.sequences[0].tokens == still.sequences[0].tokens
    await asyncio.to_thread(wait_for, lambda: len(server.instances()) == 2, "a successor")


def _heard_again(tokens: list[int]) -> bool:
    return any(token in tokens[max(0, place - quiet_processor.FEW) : place] for place, token in enumerate(tokens))
