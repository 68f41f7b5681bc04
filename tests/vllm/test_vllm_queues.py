"""Little room: requests queue and are preempted, move all the same, and are refused where there is none."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from frame.admin import Admin
from frame.checked import Server
from frame.equality import compare
from frame.kinds import greedy
from frame.stream import COMPLETIONS, Streaming, id_of, open_session, stream

pytestmark = pytest.mark.timeout(240)

# 40 blocks of 32 tokens; three requests at once.
FLAGS = (
    *("--no-migration", "--num-gpu-blocks-override", "41", "--max-model-len", "1024", "--max-num-seqs", "3"),
    *("--max-num-batched-tokens", "256"),
)
KINDS = ("greedy", "seeded top_p", "penalties seeded", "regex seeded", "n = 2 seeded")


def body(seed: int, words: int = 20, max_tokens: int = 250) -> dict[str, Any]:
    return greedy(seed, max_tokens, words)


async def test_queued_and_preempted_requests_move_and_say_the_same(server: Server) -> None:
    async with open_session(server.url) as session:
        rows = await compare(session, 3 * len(KINDS), seed=2, concurrency=16, kinds=KINDS)
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    assert min(row.fewest_moves for row in rows) >= 1
    assert sum(row["preemptions"] for row in server.instances()) > 0, "nothing was preempted: this proves nothing"
    server.wait_until_quiet()


async def test_queued_request_moves_without_kv_and_runs_at_once(server: Server) -> None:
    async with open_session(server.url) as session:
        admin = Admin(session)
        full = [await _running(session, f"full-{n}", 0, body(n, max_tokens=700)) for n in range(3)]
        queued = Streaming(session, body(9), name="queued", engine=0)
        await admin.until_state(queued.id, "waiting")
        status, answer = await admin.migrate(queued.id, "i1")
        assert (status, answer.get("bytes"), answer.get("stages")) == (200, 0, 1)
        moved = await queued
        assert not full[0].task.done(), "it waited for its turn at the source"
        for each in full:
            await each
        still = await stream(session, COMPLETIONS, body(9))
    assert moved.sequences[0].tokens == still.sequences[0].tokens


async def test_queued_request_that_asks_about_its_prompt_moves_and_is_told_the_same(server: Server) -> None:
    """vLLM tells what it asks for with a whole answer alone."""
    asks = body(9) | {"model": "tiny", "prompt_logprobs": 1, "return_token_ids": True}

    async def told(name: str, **where: str) -> Any:
        async with session.post(COMPLETIONS, json=asks, headers={"X-Request-Id": name} | where) as answer:
            (choice,) = (await answer.json())["choices"]
            return choice["prompt_logprobs"], choice["token_ids"]

    async with open_session(server.url) as session:
        admin = Admin(session)
        full = [await _running(session, f"before-{n}", 0, body(n, max_tokens=700)) for n in range(3)]
        asking = asyncio.create_task(told("asks", **{"X-data-parallel-rank": "0"}))
        await admin.until_state(id_of(COMPLETIONS, "asks"), "waiting")
        status, answer = await admin.migrate(id_of(COMPLETIONS, "asks"), "i1")
        assert (status, answer.get("bytes")) == (200, 0)
        moved = await asking
        assert not full[0].task.done(), "it waited for its turn at the source"
        for each in full:
            await each
        assert moved[0]
        assert moved == await told("still")


async def test_queued_request_that_moved_can_be_moved_again(server: Server) -> None:
    async with open_session(server.url) as session:
        admin = Admin(session)
        full = [
            await _running(session, f"both-{engine}-{n}", engine, body(n, max_tokens=700))
            for engine in (0, 1)
            for n in range(3)
        ]
        wanderer = Streaming(session, body(11), name="wanderer", engine=0)
        await admin.until_state(wanderer.id, "waiting")
        for target in ("i1", "i0", "i1"):
            status, answer = await admin.migrate(wanderer.id, target)
            assert status == 200, answer
            assert await admin.where(wanderer.id) == target
        moved = await wanderer
        for each in full:
            await each
        still = await stream(session, COMPLETIONS, body(11))
    assert moved.sequences[0].tokens == still.sequences[0].tokens


async def test_high_priority_request_takes_the_place_of_a_normal_one_and_all_say_the_same(server: Server) -> None:
    bodies = [body(20 + n, max_tokens=600) for n in range(3)]
    high = body(30, max_tokens=40) | {"priority": -1}
    async with open_session(server.url) as session:
        full = [await _running(session, f"normal-{n}", 0, each) for n, each in enumerate(bodies)]
        first = await stream(session, COMPLETIONS, high, engine=0)
        assert not any(each.task.done() for each in full), "it waited for its turn"
        outputs = [await each for each in full]
        undisturbed = [await stream(session, COMPLETIONS, each) for each in (*bodies, high)]
    tokens = [output.sequences[0].tokens for output in (*outputs, first)]
    assert tokens == [output.sequences[0].tokens for output in undisturbed]
    server.wait_until_quiet()


async def test_full_batch_refuses_and_the_stream_goes_on(server: Server) -> None:
    async with open_session(server.url) as session:
        full = [await _running(session, f"there-{n}", 1, body(n, max_tokens=700)) for n in range(3)]
        mover = await _running(session, "mover", 0, body(7, max_tokens=500))
        status, answer = await Admin(session).migrate(mover.id, "i1")
        outputs = [await each for each in (*full, mover)]
    assert status == 409
    assert answer["ok"] is False
    assert "all 3 batch slots are taken" in answer["reason"]
    assert all(output.complete for output in outputs)
    assert outputs[-1].tokens == 500
    newest = next(row for row in server.migrations() if row["request_id"] == mover.id)
    assert newest["outcome"].startswith("stayed: refused")


async def test_full_cache_refuses_and_the_stream_goes_on(server: Server) -> None:
    async with open_session(server.url) as session:
        # Of the 40 blocks there, at least 28 are held; at least 18 are to come.
        mover = await _running(session, "heavy", 0, body(8, 100, 380))
        full = [await _running(session, f"big-{n}", 1, body(n, 75, 150)) for n in range(2)]
        status, answer = await Admin(session).migrate(mover.id, "i1")
        outputs = [await each for each in (*full, mover)]
    assert status == 409
    assert "no room" in answer["reason"]
    assert all(output.complete for output in outputs)


async def _running(session: aiohttp.ClientSession, name: str, engine: int, request: dict[str, Any]) -> Streaming:
    """A stream on an instance of choice that has said its first token."""
    started = Streaming(session, request, name=name, engine=engine)
    await started.reaches(1)
    return started
