"""Two workers per instance, each in a process of its own: KV moves from rank to rank."""

from __future__ import annotations

import pytest
from frame.checked import Server
from frame.equality import assert_moved, compare
from frame.stream import open_session

pytestmark = pytest.mark.timeout(280)

FLAGS = (
    *("--no-migration", "--tensor-parallel-size", "2", "--max-model-len", "2048"),
    *("--distributed-executor-backend", "mp"),
)


async def test_moved_streams_say_what_undisturbed_ones_say(server: Server) -> None:
    async with open_session(server.url) as session:
        rows = await compare(session, 2, seed=4, concurrency=2, kinds=["greedy", "seeded top_p"])
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    assert_moved(rows)
