"""Were the copied KV wrong, the equality tests of the V2 model runner would see it."""

from __future__ import annotations

import random

import interpreted
import pytest
from frame.checked import Server
from frame.equality import Plan, moving, undisturbed
from frame.kinds import make
from frame.stream import open_session

pytestmark = [pytest.mark.timeout(240), pytest.mark.nightly]

FLAGS = interpreted.FLAGS
ENVIRONMENT = interpreted.ENVIRONMENT | {"LLUMNIX_FAULT": "zero-arrivals"}


async def test_zeroed_kv_changes_what_a_moved_stream_says(server: Server) -> None:
    kind = make("greedy", random.Random(5)).shortened(100)
    plan = Plan(["i0", "i1"], random.Random(6), most_moves=1, last_move=40)
    async with open_session(server.url) as session:
        moved, moves = await moving(session, kind, "moved", plan)
        left_alone = await undisturbed(session, kind, "still")
    assert moves.made == 1
    assert moved.sequences[0].tokens != left_alone.sequences[0].tokens
