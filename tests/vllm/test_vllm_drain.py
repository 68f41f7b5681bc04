"""Instances are taken away under streams: by order, by SIGTERM, and when there is no time to move anything."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from frame.checked import Server
from frame.kinds import greedy
from frame.server import wait_for
from frame.stream import Output, Streaming, open_session

pytestmark = pytest.mark.timeout(240)

INSTANCES = 2
FLAGS = ("--no-migration", "--drain-timeout-s", "20")

STREAMS = 12
TOKENS = 400

Act = Callable[[str], Awaitable[None]]


def body(seed: int, max_tokens: int) -> dict[str, Any]:
    """Every other one is drawn, with its seed."""
    return greedy(seed, max_tokens) | {"temperature": seed % 2, "seed": seed}


def ids(server: Server) -> list[str]:
    return [row["id"] for row in server.instances()]


def two_instances(server: Server) -> None:
    """Those that an earlier test took away are made up for."""
    if len(ids(server)) < 2:
        assert server.post("/llumnix/v1/instances", json={"count": 1}).status_code == 202
        wait_for(lambda: len(ids(server)) == 2, "two instances")


def report_of(server: Server, instance: str) -> dict[str, Any]:
    reports = server.get("/llumnix/v1/drains").json()["drains"]
    report: dict[str, Any] = next(report for report in reports if report["instance"] == instance)
    return report


async def ended_report(server: Server, instance: str) -> dict[str, Any]:
    await asyncio.to_thread(
        wait_for, lambda: server.instance(instance)["state"] == "stopped", "the end of the drained instance"
    )
    return await asyncio.to_thread(report_of, server, instance)


async def streams_while(server: Server, name: str, act: Act, max_tokens: int = TOKENS) -> list[Output]:
    """Streams on the first instance, which is acted upon when all of them speak; then the same undisturbed. Those of
    more tokens than the others are left when they have said as many: they are there while it is acted."""
    first = server.instances()[0]
    bodies = [body(n, max_tokens) for n in range(STREAMS)]
    async with open_session(server.url) as session:
        places = {row["instance"] for row in server.requests()}
        assert not places
        streams = [Streaming(session, each, name=f"{name}-{n}") for n, each in enumerate(bodies)]
        for stream in streams:
            await stream.reaches(5)
        await act(first["id"])
        outputs = [await said(stream, max_tokens) for stream in streams]
        again = [Streaming(session, body(n, TOKENS), name=f"{name}-u{n}") for n in range(STREAMS)]
        undisturbed = [await stream for stream in again]
    assert [output.error for output in outputs] == [""] * len(bodies)
    assert [o.sequences[0].tokens[:TOKENS] for o in outputs] == [o.sequences[0].tokens for o in undisturbed]
    await asyncio.to_thread(server.wait_until_quiet)
    return outputs


async def said(stream: Streaming, max_tokens: int) -> Output:
    if max_tokens > TOKENS:
        await stream.reaches(TOKENS)
        await stream.cancel()
        return stream.output
    return await stream


async def test_drain_moves_what_runs_there_and_reports(server: Server) -> None:
    two_instances(server)
    reports: list[dict[str, Any]] = []

    async def drain(instance: str) -> None:
        held = server.instance(instance)["running"]
        assert held > 0
        assert server.post(f"/llumnix/v1/instances/{instance}/drain").status_code == 202
        report = await ended_report(server, instance)
        assert report["requests"] == held
        reports.append(report)

    await streams_while(server, "drained", drain)
    (report,) = reports
    assert (report["outcome"], report["replayed"], report["left"], report["why"]) == ("empty", 0, 0, "asked for")
    assert report["moved"] > 0
    assert report["moved"] + report["finished"] == report["requests"]
    assert report["seconds"] < 10


async def test_what_has_no_time_to_move_is_replayed_and_says_the_same(server: Server) -> None:
    two_instances(server)

    async def drain_at_once(instance: str) -> None:
        assert server.post(f"/llumnix/v1/instances/{instance}/drain?timeout_s=0").status_code == 202
        report = await ended_report(server, instance)
        assert report["outcome"] == "empty"
        assert report["replayed"] > 0
        assert report["replayed"] + report["moved"] + report["finished"] == report["requests"]

    await streams_while(server, "hurried", drain_at_once)


async def test_sigterm_drains_an_instance(server: Server) -> None:
    two_instances(server)

    async def terminate(instance: str) -> None:
        server.signal_instance(instance, signal.SIGTERM)
        report = await ended_report(server, instance)
        assert (report["outcome"], report["replayed"]) == ("empty", 0)
        assert report["moved"] > 0

    await streams_while(server, "terminated", terminate)
    assert len(ids(server)) == 1


async def test_kept_instance_comes_back_and_takes_requests(server: Server) -> None:
    two_instances(server)
    moved_back: list[str] = []

    async def drain_and_come_back(instance: str) -> None:
        path = f"/llumnix/v1/instances/{instance}"
        assert server.post(f"{path}/undrain").status_code == 409
        assert server.post(f"{path}/drain?keep=true").status_code == 202
        await asyncio.to_thread(wait_for, lambda: report_of(server, instance)["outcome"] == "empty", "an empty one")
        assert server.instance(instance)["load"] == "kept"
        other = next(one for one in ids(server) if one != instance)
        refused = server.post(f"/llumnix/v1/instances/{other}/drain")
        assert (refused.status_code, "is the last instance" in refused.json()["reason"]) == (409, True)
        assert server.post(f"{path}/undrain").status_code == 202
        await asyncio.to_thread(wait_for, lambda: server.instance(instance)["state"] == "running", "its return")
        assert report_of(server, instance)["outcome"] == "withdrawn"
        there = {row["id"] for row in server.requests()}
        answer = server.post("/llumnix/v1/migrations", json={"request_id": min(there), "target": instance})
        assert answer.status_code == 200, answer.text
        moved_back.append(answer.json()["target"])

    await streams_while(server, "returned", drain_and_come_back, max_tokens=1000)
    assert moved_back == [server.instances()[0]["id"]]


def test_refused_orders(server: Server) -> None:
    two_instances(server)
    instance = ids(server)[0]
    for query in ("timeout_s=soon", "timeout_s=-1", "timeout_s=inf", "keep=perhaps"):
        answer = server.post(f"/llumnix/v1/instances/{instance}/drain?{query}")
        assert answer.status_code == 400, query


def test_size_is_told_though_auto_scaling_is_off(server: Server) -> None:
    two_instances(server)
    told = wait_for(lambda: (s := server.get("/llumnix/v1/scaling").json())["serving"] == 2 and s, "a fresh count")
    assert told["mode"] == "off"
    assert told["mean_instances"] > 0
