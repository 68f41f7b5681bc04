"""Async scheduling: a step is always in flight, so what moves must be waited for."""

from __future__ import annotations

import pytest
from frame.checked import Server
from frame.equality import assert_moved, compare
from frame.stream import open_session

pytestmark = pytest.mark.timeout(240)

FLAGS = ("--no-migration", "--async-scheduling", "--max-num-batched-tokens", "512")
KINDS = (
    "greedy",
    "seeded top_p",
    "penalties seeded",
    "logprobs",
    "regex seeded",
    "json schema",
    "stop string",
    "chat",
    "n = 2 seeded",
    "long prompt",
)


async def test_moved_streams_say_what_undisturbed_ones_say(server: Server) -> None:
    async with open_session(server.url) as session:
        rows = await compare(session, len(KINDS), seed=3, kinds=KINDS)
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    assert_moved(rows)
    server.wait_until_quiet()
