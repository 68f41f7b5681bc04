"""Drafts from the text itself (ngram): pending ones stay behind, and the next are made of what has come."""

from __future__ import annotations

import json

import pytest
from frame.checked import Server
from frame.equality import assert_moved, compare
from frame.stream import open_session

pytestmark = pytest.mark.timeout(240)

DRAFTER = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
FLAGS = ("--no-migration", "--max-num-batched-tokens", "512", "--speculative-config", json.dumps(DRAFTER))
KINDS = ("penalties", "logprobs", "json schema", "stop string", "long prompt")


async def test_moved_streams_say_what_undisturbed_ones_say(server: Server) -> None:
    async with open_session(server.url) as session:
        rows = await compare(session, len(KINDS), seed=5, kinds=KINDS)
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    assert_moved(rows)
    server.wait_until_quiet()
