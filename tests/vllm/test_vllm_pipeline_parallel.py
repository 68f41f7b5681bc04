"""Two stages per instance, each in a process of its own: every stage pulls the KV of its layers from the same stage."""

from __future__ import annotations

import pytest
from families.table import engine_environment
from frame.checked import Server
from frame.equality import assert_moved, compare
from frame.stream import open_session

pytestmark = [pytest.mark.timeout(280), pytest.mark.nightly]

FLAGS = (
    *("--no-migration", "--pipeline-parallel-size", "2", "--max-model-len", "2048", "--enforce-eager"),
    *("--distributed-executor-backend", "mp"),
)
ENVIRONMENT = engine_environment("pipeline")


async def test_moved_streams_say_what_undisturbed_ones_say(server: Server) -> None:
    async with open_session(server.url) as session:
        kinds = ["greedy", "seeded top_p", "long prompt", "logprobs"]
        rows = await compare(session, 4, seed=7, concurrency=4, kinds=kinds)
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    assert_moved(rows)
    server.wait_until_quiet()
