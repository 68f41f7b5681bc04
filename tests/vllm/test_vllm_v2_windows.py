"""Two groups of KV blocks with vLLM's V2 model runner, one behind a sliding window; scheduling is synchronous."""

from __future__ import annotations

import json

import interpreted
import pytest
from frame.checked import Server
from frame.equality import assert_moved, compare
from frame.stream import open_session

pytestmark = [pytest.mark.timeout(280), pytest.mark.nightly]

WINDOW = {"sliding_window": 96, "layer_types": ["sliding_attention", "full_attention"] * 2}
FLAGS = (*interpreted.SYNCHRONOUS, "--hf-overrides", json.dumps(WINDOW))
ENVIRONMENT = interpreted.ENVIRONMENT


async def test_streams_move_that_have_left_their_window(server: Server) -> None:
    kinds = ("greedy", "seeded top_p", "long prompt", "cached prefix")
    async with open_session(server.url, timeout_s=250) as session:
        rows = await compare(session, 8, seed=5, kinds=kinds, most_tokens=100)
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    assert_moved(rows)
