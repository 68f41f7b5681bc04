"""An engine whose steps have become longer: who runs there leaves it, with all its tokens, and new ones avoid it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from frame.checked import Server
from frame.kinds import greedy
from frame.models import paced_engine_flags
from frame.stream import COMPLETIONS, Streaming, open_session, stream
from server_garage import own_server

pytestmark = [pytest.mark.timeout(240), pytest.mark.vllm]

STEP_MS = 40
"""So long that what others do on the same cores is over before a step is."""

TOKENS = 300
ROUNDS = 20


def body(seed: int, max_tokens: int) -> dict[str, Any]:
    """Each of another length."""
    return greedy(seed, max_tokens, words=40 + seed)


@pytest.fixture(scope="module")
def model() -> Iterator[list[str]]:
    with paced_engine_flags(step_ms=STEP_MS, token_ms=0.1, max_model_len=2048, kv_mib=64) as flags:
        yield flags


@pytest.fixture
def server(model: list[str], tmp_path: Path) -> Iterator[Server]:
    with own_server(tmp_path, *model, "--max-num-batched-tokens", "512") as running:
        yield running


async def all_know_what_their_steps_cost(session: aiohttp.ClientSession, server: Server) -> None:
    """As soon as no engine counts as slow: on a busy machine one does at first, and only steps tell otherwise."""
    for _ in range(ROUNDS):
        await asyncio.gather(*(stream(session, COMPLETIONS, body(n, 60), engine=n % 2) for n in range(16)))
        if all(row["step_cost"] is not None and row["slowdown"] == 1 for row in server.instances()):
            return
    raise AssertionError(f"after {ROUNDS} rounds: {server.instances()}")


async def test_streams_leave_an_engine_that_has_become_slow(server: Server, model: list[str]) -> None:
    async with open_session(server.url) as session:
        await all_know_what_their_steps_cost(session, server)
        still = await asyncio.gather(*(stream(session, COMPLETIONS, body(100 + n, TOKENS), engine=n) for n in range(2)))
        assert [row["reason"] for row in server.migrations()] == []
        streams = [Streaming(session, body(100 + n, TOKENS), name=f"slow-{n}", engine=0) for n in range(2)]
        await asyncio.gather(*(each.reaches(50) for each in streams))
        slow = Path(model[0]) / f"slow-{server.instance('i0')['pid']}"
        slow.touch()
        outputs = [await each for each in streams]
        slow.unlink()
    assert [output.sequences[0].tokens for output in outputs] == [output.sequences[0].tokens for output in still]
    moves = server.migrations()
    assert {(row["source"], row["target"], row["cause"], row["outcome"]) for row in moves} == {
        ("i0", "i1", "pace", "moved")
    }
    assert {row["request_id"] for row in moves} == {each.id for each in streams}
    assert all(row["reason"].startswith("a token every ") for row in moves)
    assert server.instance("i0")["slowdown"] > 1.25
