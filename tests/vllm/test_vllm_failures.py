"""What breaks around streams: either end of their moves, an engine's main thread, the scheduler, the disk; and
more streams than may wait."""

from __future__ import annotations

import asyncio
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from frame.admin import Admin
from frame.checked import Server
from frame.kinds import greedy
from frame.server import WAIT_S, wait_for
from frame.stream import COMPLETIONS, Output, Streaming, open_session

pytestmark = pytest.mark.timeout(240)

INSTANCES = 3
FLAGS = (
    *("--no-migration", "--instance-timeout-s", "5", "--step-timeout-s", "5"),
    *("--max-num-seqs", "8", "--max-queued-requests", "20"),
)
ENVIRONMENT = {"LLUMNIX_FAULT": "hang"}

PHASES_MS = 120
"""A move of a short request takes less; orders are spread over so long before an end dies."""


def start(session: aiohttp.ClientSession, bodies: list[dict[str, Any]], name: str) -> list[Streaming]:
    return [Streaming(session, body, name=f"{name}-{n}") for n, body in enumerate(bodies)]


def said(outputs: list[Output]) -> list[list[int]]:
    assert [output.error for output in outputs] == [""] * len(outputs)
    return [output.sequences[0].tokens for output in outputs]


async def until(condition: Callable[[], bool], what: str) -> None:
    """While the streams go on."""
    await asyncio.to_thread(wait_for, condition, what)


def all_there(server: Server) -> list[str]:
    wait_for(lambda: len(server.instances()) == INSTANCES, "all instances")
    return [row["id"] for row in server.instances()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_either_end_dies_in_whatever_phase_its_moves_are(server: Server, number: signal.Signals) -> None:
    """Moves to and from the victim begin one after the other until it dies: each is somewhere else in its course."""
    rng = random.Random(int(number))
    victim, *others = all_there(server)
    bodies = [greedy(1000 * number + n, 200) for n in range(15)]
    async with open_session(server.url) as session:
        admin = Admin(session)
        streams = start(session, bodies, f"torn-{number.name}")
        for each in streams:
            await each.reaches(3)
        places = {row["id"]: row["instance"] for row in server.requests()}

        async def move(request: str, place: str) -> int:
            await asyncio.sleep(rng.uniform(0, PHASES_MS) / 1e3)
            status, _ = await admin.migrate(request, rng.choice(others) if place == victim else victim)
            return status

        moves = [asyncio.create_task(move(request, place)) for request, place in sorted(places.items())]
        await asyncio.sleep(PHASES_MS / 1e3)
        server.signal_instance(victim, number)
        statuses = await asyncio.gather(*moves)
        torn = [await each for each in streams]
        whole = [await each for each in start(session, bodies, f"whole-{number.name}")]
    assert set(statuses) <= {200, 404, 409}
    assert said(torn) == said(whole)
    all_there(server)
    server.wait_until_quiet()


async def test_hung_engine_in_a_process_that_lives_is_replaced_and_its_streams_go_on(server: Server) -> None:
    """One hangs while it generates; another one while it is idle, and requests come to it."""
    victim, *_ = all_there(server)
    bodies = [greedy(1500 + n, 200) for n in range(9)]
    async with open_session(server.url) as session:
        torn = start(session, bodies, "hung-busy")
        for each in torn:
            await each.reaches(3)
        server.signal_instance(victim, signal.SIGUSR2)
        said_then = said([await each for each in torn])
        assert server.instance(victim)["state"] == "lost"
        all_there(server)
        server.wait_until_quiet()
        server.signal_instance(all_there(server)[0], signal.SIGUSR2)
        assert said([await each for each in start(session, bodies, "hung-idle")]) == said_then
    assert victim not in all_there(server)
    server.wait_until_quiet()


async def test_killed_scheduler_costs_no_request_and_its_successor_knows_the_instances(server: Server) -> None:
    ids = all_there(server)
    bodies = [greedy(2000 + n, 150) for n in range(12)]
    async with open_session(server.url) as session:
        before = start(session, bodies[:6], "before")
        for each in before:
            await each.reaches(3)
        first = server.get("/llumnix/v1/instances").json()["scheduler"]["pid"]
        psutil.Process(first).kill()
        during = start(session, bodies[6:], "during")
        await until(lambda: scheduler(server) not in (None, first), "another scheduler")
        await until(
            lambda: server.get("/llumnix/v1/scaling").json()["serving"] == len(ids), "a scheduler that knows all"
        )
        said([await each for each in (*before, *during)])
    assert all_there(server) == ids


def scheduler(server: Server) -> int | None:
    """Pid of the one that speaks."""
    told = server.get("/llumnix/v1/instances").json()["scheduler"]
    return int(told["pid"]) if told["state"] == "running" else None


async def test_above_the_limit_of_queued_requests_new_ones_are_sent_away(server: Server) -> None:
    all_there(server)
    async with open_session(server.url) as session:
        streams: list[Streaming] = []
        for n in range(20):  # one after the other: each runs before the next one comes
            streams += start(session, [greedy(3000 + n, 600)], f"runs-{n}")
            await streams[-1].reaches(1)
        streams += start(session, [greedy(3100 + n, 300) for n in range(18)], "queued")
        await until(lambda: sum(row["waiting"] for row in server.instances()) >= 12, "a queue")
        crowd = []
        for _ in range(30):
            crowd.append(asyncio.create_task(session.post(COMPLETIONS, json={"model": "tiny", **greedy(1, 5)})))
            await asyncio.sleep(0.03)  # front ends go by the last reports, which come every 20 ms
        answers = [await each for each in crowd]
        refused = [answer for answer in answers if answer.status == 503]
        assert refused, "nobody was sent away"
        assert {answer.status for answer in answers} <= {200, 503}
        assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
        assert "requests wait already (limit 20)" in (await refused[0].json())["error"]["message"]
        assert server.get("/health").status_code == 200
        said([await each for each in streams])
    server.wait_until_quiet()


async def test_full_disk_for_logs_stops_nobody_and_then_the_server_ends_with_its_streams(tmp_path: Path) -> None:
    """First no process may write to a file any more, and an instance is drained, which all have a word to say about.
    Then the server is asked to end: it lets running streams finish, takes no new ones, and leaves nothing."""
    server = Server(tmp_path, "--no-migration", instances=2, recorded=False)
    bodies = [greedy(4000 + n, 150) for n in range(6)]
    try:
        async with open_session(server.url) as session:
            with full_disk(server):
                told = await drained_under_streams(server, session, bodies)
            last = start(session, [body | {"max_tokens": 400} for body in bodies], "last")
            for each in last:
                await each.reaches(3)
            stopped = asyncio.create_task(asyncio.to_thread(server.stop))
            await refuses(session)
            assert not any(each.task.done() for each in last), "they ended before anything was refused"
            assert [tokens[:150] for tokens in said([await each for each in last])] == told
            await stopped
    finally:
        if server.process.poll() is None:
            server.kill()


async def drained_under_streams(
    server: Server, session: aiohttp.ClientSession, bodies: list[dict[str, Any]]
) -> list[list[int]]:
    """What the streams said."""
    size = size_of_log(server)
    streams = start(session, bodies, "full")
    for each in streams:
        await each.reaches(3)
    assert server.post("/llumnix/v1/instances/i0/drain").status_code == 202
    await until(lambda: server.instance("i0")["state"] == "stopped", "the end of the drain")
    told = said([await each for each in streams])
    assert size_of_log(server) == size, "the disk was not full"
    return told


async def refuses(session: aiohttp.ClientSession) -> None:
    """Waits until a new request is turned away, or nobody listens any more."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                async with session.post(COMPLETIONS, json={"model": "tiny", **greedy(1, 5)}) as answer:
                    if answer.status == 503:
                        return
                    assert answer.status == 200
            except aiohttp.ClientError:
                return


@contextmanager
def full_disk(server: Server) -> Iterator[None]:
    """For all processes but the launcher, whose logs are its console."""
    family = psutil.Process(server.process.pid).children(recursive=True)
    for process in family:
        limit_files(process.pid, 0)
    yield
    for process in family:
        if process.is_running():
            limit_files(process.pid, resource.RLIM_INFINITY)


def size_of_log(server: Server) -> int:
    return (server.folder / "scheduler.log").stat().st_size


def limit_files(pid: int, size: int) -> None:
    """Writing beyond this size of a file fails, as on a full disk."""
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, most))
