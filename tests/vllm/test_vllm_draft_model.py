"""Drafts from a model with a KV cache of its own, which goes along: here the model itself, so that each is accepted."""

from __future__ import annotations

import json

import pytest
from frame.checked import Server
from frame.equality import assert_moved, compare
from frame.stream import open_session

from llumnix import tiny_model

pytestmark = pytest.mark.timeout(240)

DRAFTER = {"method": "draft_model", "model": str(tiny_model.ensure()), "num_speculative_tokens": 3}
FLAGS = (
    *("--no-migration", "--max-num-batched-tokens", "512", "--max-model-len", "4096"),  # twice the KV per token
    *("--speculative-config", json.dumps(DRAFTER)),
)
KINDS = ("greedy", "logprobs", "regex", "long prompt", "cached prefix")


async def test_moved_streams_say_what_undisturbed_ones_say_and_their_drafts_stay_good(server: Server) -> None:
    async with open_session(server.url) as session:
        rows = await compare(session, len(KINDS), seed=6, kinds=KINDS)
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    assert_moved(rows)
    server.wait_until_quiet()
    drafted, accepted = count(server, "drafts"), count(server, "accepted_tokens")
    print(accepted, drafted)


def count(server: Server, what: str) -> float:
    lines = server.metrics().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:spec_decode_num_{what}_total"))
