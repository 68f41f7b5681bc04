"""Two front ends share the port and the instances; one dies."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter

import msgspec
import pytest
from frame.checked import Server
from frame.equality import Plan, moving, undisturbed
from frame.kinds import make
from frame.server import wait_for
from frame.stream import Output, Streaming, open_session

from llumnix.api.bodies import StoryAnswer
from llumnix.journal.entries import FirstTokenNoted

pytestmark = pytest.mark.timeout(240)

FLAGS = ("--no-migration", "--api-server-count", "2")

NOTED_WITHIN_S = 1.0
"""Of its last token: on a busy machine a client may read it before the front end has noted that the stream is over."""


async def test_streams_through_both_are_moved_through_either(server: Server) -> None:
    kinds = [make("greedy", random.Random(number)) for number in range(12)]
    for kind in kinds:
        kind.body["max_tokens"] = 500
    async with open_session(server.url) as session:
        plans = [Plan(["i0", "i1"], random.Random(number), most_moves=4) for number in range(12)]
        moved = await asyncio.gather(*(moving(session, kind, f"both-{n}", plans[n]) for n, kind in enumerate(kinds)))
        still = await asyncio.gather(*(undisturbed(session, kind, f"calm-{n}") for n, kind in enumerate(kinds)))
        assert [output.sequences[0].tokens for output, _ in moved] == [o.sequences[0].tokens for o in still]
        assert sum(moves.made > 0 for _, moves in moved) >= 8, "on a busy machine some end before their order comes"
    made = sum(moves.made for _, moves in moved)
    assert sum(row["outcome"] == "moved" for row in server.migrations()) == made, "not all are listed by either"
    by_hand = {"outcome": "moved", "cause": "by_hand", "stayed_why": ""}
    assert server.counted("llumnix_migrations_total", **by_hand) == made, "not all are counted"
    server.wait_until_quiet()
    for output, moves in moved:
        assert_told(server, output, moves.made)


def assert_told(server: Server, output: Output, moves: int) -> None:
    """Whichever front end is asked: one entry for each thing that happened, and times that add up."""
    answer = server.get(f"/llumnix/v1/requests/{output.id}/story")
    told = msgspec.json.decode(answer.content, type=StoryAnswer)
    (story,) = told.stories
    assert len(told.words[story.sequence].entries) == len(story.entries)
    kinds = Counter(entry.kind for entry in story.entries)
    assert [kinds[kind] for kind in ("dispatch", "first_token", "moved", "ended")] == [1, 1, moves, 1]
    assert story.spent.total_s == pytest.approx(story.latency_s)
    felt_s = output.times_s[-1] - output.sent_s
    assert felt_s - 10.0 < story.latency_s < felt_s + NOTED_WITHIN_S, "its client waits for HTTP, and its own turn"
    first = next(entry.what for entry in story.entries if isinstance(entry.what, FirstTokenNoted))
    assert 0 < first.prefill_s < first.ttft_s < output.ttft_s + NOTED_WITHIN_S
    assert story.spent.moving_s == 0 or moves > 0, "nothing, too, where a move took no longer than a step"


async def test_seeded_streams_through_both_go_on_when_their_instance_dies(server: Server) -> None:
    kinds = [make("seeded top_p", random.Random(80 + number)) for number in range(8)]
    async with open_session(server.url) as session:
        streams = [Streaming(session, kind.body, name=f"seeded-{n}", engine=n % 2) for n, kind in enumerate(kinds)]
        for each in streams:
            await each.reaches(20)
        server.signal_instance("i0", signal.SIGKILL)
        outputs = [await each for each in streams]
        await asyncio.to_thread(wait_for, lambda: len(server.instances()) == 2, "a successor")
        still = await asyncio.gather(*(undisturbed(session, kind, f"spared-{n}") for n, kind in enumerate(kinds)))
    assert [output.failure for output in outputs] == [""] * len(kinds)
    assert [output.sequences for output in outputs] == [output.sequences for output in still]
    server.wait_until_quiet()


async def test_orphans_of_a_killed_front_end_are_aborted_and_the_other_goes_on(server: Server) -> None:
    kinds = [make("greedy", random.Random(50 + number)) for number in range(12)]
    for kind in kinds:
        kind.body["max_tokens"] = 1000
    async with open_session(server.url) as session:
        streams = [Streaming(session, kind.body, name=f"orphan-{n}") for n, kind in enumerate(kinds)]
        for each in streams:
            await each.reaches(3)
        os.kill(server.descendant("front-1").pid, signal.SIGKILL)
        results = await asyncio.gather(*(each.task for each in streams), return_exceptions=True)
    served = [result for result in results if isinstance(result, Output) and result.complete]
    assert 0 < len(served) < 12, "all streams went through one front end"
    assert all(output.tokens == 1000 for output in served)
    assert all(output.error == "" for output in served)
    server.wait_until_quiet(timeout_s=10)
    wait_for(lambda: server.descendant("front-1").is_running(), "another front end")
