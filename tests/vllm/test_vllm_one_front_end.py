"""The one front end lags behind its instances, or dies and comes back."""

from __future__ import annotations

import asyncio
import re
import signal
import time

import httpx
import pytest
from frame.checked import USUAL_FLAGS, Server
from frame.kinds import greedy
from frame.server import wait_for
from frame.stream import Streaming, open_session, stream

pytestmark = [pytest.mark.timeout(120), pytest.mark.nightly]

INSTANCES = 1
FLAGS = (*USUAL_FLAGS, "--api-server-count", "1")


async def test_streams_move_to_an_instance_that_the_front_end_has_not_heard_of(server: Server) -> None:
    """The only instance is drained while another one starts, and the front end stands still meanwhile."""
    bodies = [greedy(number, 1500) for number in range(4)]
    front_end = server.descendant("front-0")
    async with open_session(server.url) as session:
        streams = [Streaming(session, body, name=f"late-{n}") for n, body in enumerate(bodies)]
        for each in streams:
            await each.reaches(5)
        assert server.post("/llumnix/v1/instances", json={"count": 1}).status_code == 202
        assert server.post("/llumnix/v1/instances/i0/drain?force=true").status_code == 202
        front_end.send_signal(signal.SIGSTOP)
        try:
            wait_for(lambda: "i1 ready in" in server.console(), "another instance")
            time.sleep(0.7)  # noqa: ASYNC251 its streams move there
        finally:
            front_end.send_signal(signal.SIGCONT)
        outputs = [await each for each in streams]
        still = await asyncio.gather(*(stream(session, "/v1/completions", body) for body in bodies))
    assert [output.error for output in outputs] == [""] * 4
    assert [o.sequences[0].tokens for o in outputs] == [o.sequences[0].tokens for o in still]
    await asyncio.to_thread(server.wait_until_quiet)


async def test_front_end_that_takes_a_dead_ones_place_spreads_its_requests(server: Server) -> None:
    """What the dead one sent is not taken for requests that still wait somewhere. Whether it could be is a matter of
    milliseconds, hence more than once."""
    assert server.post("/llumnix/v1/instances", json={"count": 2 - len(server.instances())}).status_code in (202, 400)
    await asyncio.to_thread(wait_for, lambda: len(server.instances()) == 2, "two instances")
    for turn in range(4):
        front_end = server.descendant("front-0")
        async with open_session(server.url) as session:
            crowd = [Streaming(session, greedy(number, 1000), name=f"{turn}-before-{number}") for number in range(60)]
            for each in crowd:
                await each.reaches(1)
            front_end.send_signal(signal.SIGKILL)
            await asyncio.gather(*(each.task for each in crowd), return_exceptions=True)
        await asyncio.to_thread(wait_for, lambda: healthy(server), "its successor")
        await asyncio.to_thread(wait_for, lambda: len(server.instances()) == 2, "two instances")
        await asyncio.to_thread(server.wait_until_quiet)
        before = dispatches(server)
        async with open_session(server.url) as session:
            outputs = await asyncio.gather(
                *(Streaming(session, greedy(number, 200), name=f"{turn}-after-{number}").task for number in range(60))
            )
        assert [output.error for output in outputs] == [""] * 60
        sent = {instance: count - before[instance] for instance, count in dispatches(server).items()}
        assert min(sent.values()) >= 20, (turn, sent)


def dispatches(server: Server) -> dict[str, int]:
    found = re.findall(r'llumnix_dispatches_total{instance_id="(i\d+)"} (\d+)', server.metrics())
    assert len(found) == 2
    return {instance: int(count) for instance, count in found}


def healthy(server: Server) -> bool:
    try:
        return server.descendant("front-0").pid > 0 and server.get("/health").status_code == 200
    except (httpx.TransportError, AssertionError):
        return False
