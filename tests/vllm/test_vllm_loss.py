"""Instances die or fall silent while streams run on them."""

from __future__ import annotations

import asyncio
import random
import signal
from typing import Any

import aiohttp
import pytest
from frame.admin import Admin
from frame.checked import Server
from frame.equality import with_stop
from frame.kinds import KINDS, WITH_STOP, Kind, greedy, make
from frame.server import wait_for
from frame.stream import COMPLETIONS, Output, Streaming, open_session

from llumnix.vllm_words import installed_version

pytestmark = pytest.mark.timeout(240)

INSTANCES = 3
OLD = (installed_version() or "").startswith("0.31.")
SEEDED = [] if OLD else [name for name in KINDS if "seeded" in name]
FLAGS = ("--instance-timeout-s", "3")


def plain(seed: int, max_tokens: int = 160) -> Kind:
    return Kind("greedy", COMPLETIONS, greedy(seed, max_tokens))


def seeded(seed: int) -> Kind:
    return Kind("seeded", COMPLETIONS, greedy(seed, 1200) | {"temperature": 1.0, "seed": seed})


def running_ids(server: Server) -> set[str]:
    return {row["id"] for row in server.instances()}


class Crowd:
    """Streams that run side by side."""

    def __init__(self, session: aiohttp.ClientSession, kinds: list[Kind], name: str) -> None:
        self.streams = [
            Streaming(session, kind.body, path=kind.path, name=f"{name}-{n}") for n, kind in enumerate(kinds)
        ]

    async def speaks(self) -> None:
        """Every one of them has said a few tokens."""
        for each in self.streams:
            await each.reaches(5)

    async def done(self) -> list[Output]:
        return [await each for each in self.streams]


def tokens_of(outputs: list[Output]) -> list[list[int]]:
    return [output.sequences[0].tokens for output in outputs]


async def test_killed_instance_under_fifty_streams(server: Server) -> None:
    """All complete, greedy ones equal; the dead one is replaced under a new id."""
    bodies = [plain(number) for number in range(50)]
    before = running_ids(server)
    async with open_session(server.url) as session:
        crowd = Crowd(session, bodies, "killed")
        await crowd.speaks()
        victim = max(server.instances(), key=lambda row: row["running"])
        assert victim["running"] > 0
        server.signal_instance(victim["id"], signal.SIGKILL)
        outputs = await crowd.done()
        undisturbed = await Crowd(session, bodies, "spared").done()
    assert [output.error for output in outputs] == [""] * 50
    assert tokens_of(outputs) == tokens_of(undisturbed)
    assert [o.sequences[0].text for o in outputs] == [o.sequences[0].text for o in undisturbed]
    assert all(output.usage_tokens == 160 for output in outputs)
    wait_for(lambda: len(running_ids(server)) == 3, "three instances again")
    assert victim["id"] not in running_ids(server)
    assert len(running_ids(server) - before) == 1
    assert server.instance(victim["id"])["state"] == "lost"
    server.wait_until_quiet()


async def test_every_kind_goes_on_and_says_the_same(server: Server) -> None:
    """Structured output, penalties, stop conditions, logprobs, and all that draws with a seed."""
    wait_for(lambda: len(running_ids(server)) == 3, "three instances")
    names = ["greedy", "penalties", "logprobs", "min_tokens logit_bias", "regex", "json schema", "grammar", "chat"]
    names += ["choice", "three prompts", WITH_STOP, *SEEDED]
    made = [make(name, random.Random(seed)) for seed, name in enumerate(names)]
    async with open_session(server.url) as session:
        kinds = [await with_stop(session, kind, number) for number, kind in enumerate(made)]
        crowd = Crowd(session, kinds, "kind")
        await crowd.speaks()
        victim = max(server.instances(), key=lambda row: row["running"])
        server.signal_instance(victim["id"], signal.SIGKILL)
        continued = await crowd.done()
        undisturbed = await Crowd(session, kinds, "spared-kind").done()
    assert [o.error for o in continued] == [""] * len(kinds)
    assert [_said(o) for o in continued] == [_said(o) for o in undisturbed]
    server.wait_until_quiet()


@pytest.mark.skipif(OLD, reason="how it draws on CPUs cannot be followed")
async def test_seeded_streams_that_moved_are_lost_twice_and_say_the_same(server: Server) -> None:
    """The generator of each was handed over once, and is then drawn anew, at two instances one after the other."""
    wait_for(lambda: len(running_ids(server)) == 3, "three instances")
    bodies = [seeded(number) for number in range(6)]
    async with open_session(server.url) as session:
        admin = Admin(session)
        crowd = Crowd(session, bodies, "seeded")
        await crowd.speaks()
        ids = sorted(running_ids(server))
        for row in server.requests():
            await admin.migrate(row["id"], ids[(ids.index(row["instance"]) + 1) % 3])
        for _ in range(2):
            left = [row for row in server.instances() if row["id"] in ids]
            victim = max(left, key=lambda row: row["running"])
            server.signal_instance(victim["id"], signal.SIGKILL)
            assert victim["running"], "nothing was lost"
            ids.remove(victim["id"])
            await asyncio.sleep(0.5)
        outputs = await crowd.done()
        undisturbed = await Crowd(session, bodies, "spared-seeded").done()
    assert [output.error for output in outputs] == [""] * 6
    assert tokens_of(outputs) == tokens_of(undisturbed)
    server.wait_until_quiet()
    wait_for(lambda: len(running_ids(server)) == 3, "three instances again")


def _said(output: Output) -> dict[int, tuple[list[int], str | None, object]]:
    return {n: (each.tokens, each.finish_reason, each.stop_reason) for n, each in output.sequences.items()}


async def test_answer_that_is_not_streamed_is_whole_too(server: Server) -> None:
    """Logprobs of the prompt, which are computed anew, and draws without a seed, of two sequences."""
    wait_for(lambda: len(running_ids(server)) == 3, "three instances")
    prompted = greedy(300, 1000) | {"prompt_logprobs": 1}
    drawn = greedy(301, 1000) | {"temperature": 1.0, "n": 2}
    async with open_session(server.url) as session:

        async def answer(body: dict[str, Any]) -> list[dict[str, Any]]:
            async with session.post(COMPLETIONS, json=body | {"model": "tiny", "return_token_ids": True}) as response:
                assert response.status == 200, await response.text()
                choices: list[dict[str, Any]] = (await response.json())["choices"]
                return choices

        answers = [asyncio.create_task(answer(body)) for body in (prompted, drawn)]
        rows = await asyncio.to_thread(wait_for, lambda: _speaking(server, 3), "all three sequences")
        for victim in {row["instance"] for row in rows[:2]}:
            server.signal_instance(victim, signal.SIGKILL)
        (whole,), pair = [await each for each in answers]
        (still,) = await answer(prompted)
    assert whole["prompt_logprobs"] == still["prompt_logprobs"]
    assert whole["token_ids"] == still["token_ids"]
    assert [len(each["token_ids"]) for each in pair] == [1000, 1000]
    server.wait_until_quiet()


def _speaking(server: Server, count: int) -> list[dict[str, Any]]:
    rows = [row for row in server.requests() if row["output_tokens"] >= 5]
    return rows if len(rows) == count else []


async def test_stopped_instance_is_given_up_and_does_no_harm_when_it_wakes(server: Server) -> None:
    wait_for(lambda: len(running_ids(server)) == 3, "three instances")
    bodies = [plain(100 + number) for number in range(12)]
    async with open_session(server.url) as session:
        crowd = Crowd(session, bodies, "stopped")
        await crowd.speaks()
        victim = max(server.instances(), key=lambda row: row["running"])
        server.signal_instance(victim["id"], signal.SIGSTOP)
        outputs = await crowd.done()
        undisturbed = await Crowd(session, bodies, "going").done()
    assert tokens_of(outputs) == tokens_of(undisturbed)
    gone = server.instance(victim["id"])
    assert gone["state"] == "lost"
    assert "no heartbeat" in gone["why"]
    wait_for(lambda: len(running_ids(server)) == 3, "three instances again")
    server.wait_until_quiet()


async def test_source_dies_while_requests_move_away_from_it(server: Server) -> None:
    """And the target of others dies with it: every stream goes on somewhere."""
    wait_for(lambda: len(running_ids(server)) == 3, "three instances")
    bodies = [plain(200 + number, 300) for number in range(10)]
    async with open_session(server.url) as session:
        admin = Admin(session)
        crowd = Crowd(session, bodies, "torn")
        await crowd.speaks()
        ids = sorted(running_ids(server))
        places = {row["id"]: row["instance"] for row in server.requests()}
        victim = ids[0]
        moves = [
            asyncio.create_task(admin.migrate(request, ids[1] if place == victim else victim))
            for request, place in sorted(places.items())
        ]
        await asyncio.sleep(0.02)
        server.signal_instance(victim, signal.SIGKILL)
        answers = await asyncio.gather(*moves)
        outputs = await crowd.done()
        undisturbed = await Crowd(session, bodies, "whole").done()
    assert all(status in (200, 404, 409) for status, _ in answers), answers
    assert [output.error for output in outputs] == [""] * 10
    assert tokens_of(outputs) == tokens_of(undisturbed)
    server.wait_until_quiet()
    wait_for(lambda: len(running_ids(server)) == 3, "three instances again")


async def test_without_any_instance_health_is_503_and_requests_wait_for_the_next(server: Server) -> None:
    """Streams in the middle outlive even that: they go on when the replacement is there."""
    wait_for(lambda: len(running_ids(server)) == 3, "three instances")
    bodies = [plain(300 + number) for number in range(6)]
    async with open_session(server.url) as session:
        crowd = Crowd(session, bodies, "alone")
        await crowd.speaks()
        for instance in sorted(running_ids(server)):
            server.signal_instance(instance, signal.SIGKILL)
        wait_for(lambda: server.get("/health").status_code == 503, "an unhealthy server")
        refused = server.post(COMPLETIONS, json={"model": "tiny", **greedy(1, 160)})
        wait_for(lambda: server.get("/health").status_code == 200, "a healthy server")
        outputs = await crowd.done()
        undisturbed = await Crowd(session, bodies, "together").done()
    if refused.status_code != 200:  # else an instance was back already
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert "No instance" in refused.json()["error"]["message"]
    assert tokens_of(outputs) == tokens_of(undisturbed)
    wait_for(lambda: len(running_ids(server)) == 3, "three instances again")
