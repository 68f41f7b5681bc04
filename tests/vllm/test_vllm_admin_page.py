"""The live page of a real server, by its stream."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from frame.admin import Admin
from frame.checked import Server
from frame.kinds import greedy
from frame.server import wait_for
from frame.stream import Streaming, open_session

pytestmark = pytest.mark.timeout(240)

API_KEY = "open-sesame"
FLAGS = ("--no-migration",)
"""As of test_vllm_admin.py, whose server this one gets."""


async def test_whoever_watches_sees_a_request_run_and_move(server: Server) -> None:
    if len(server.instances("running")) < 2:  # tests before this one took instances away
        assert server.post("/llumnix/v1/instances", json={"count": 1}).status_code == 202
    await asyncio.to_thread(wait_for, lambda: len(server.instances("running")) >= 2, "two instances")
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with (
        open_session(server.url, API_KEY) as session,
        httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60.0) as client,
        client.stream("GET", "/llumnix/v1/watch") as watched,
    ):
        frames = (json.loads(line.removeprefix("data: ")) async for line in watched.aiter_lines() if line)
        first = await anext(frames)
        assert (first["whole"], first["server"]["migration"], first["scheduler"]["state"]) == (True, False, "running")
        stream = Streaming(session, greedy(1, 6000, words=30), name="watched")
        await stream.reaches(5)
        admin = Admin(session)
        source = await admin.where(stream.id)
        assert source is not None
        async with asyncio.timeout(30):
            assert await anext(row async for frame in frames for row in frame["instances"] if row["running"] == 1)
            assert await anext(frame async for frame in frames if frame.get("sample", {}).get("running") == 1)
        target = next(name for name in await admin.running() if name != source)
        status, answer = await admin.migrate(stream.id, target)
        assert status == 200, answer
        async with asyncio.timeout(30):
            move = await anext(move async for frame in frames for move in frame["moves"])
        assert (move["request_id"], move["source"], move["outcome"]) == (stream.id, source, "moved")
        assert (move["cause"], move["stayed_by"]) == ("by_hand", None)
        told = (await client.get(f"/llumnix/v1/requests/{stream.id}/story")).json()
        (sequence,) = (story["sequence"] for story in told["stories"])
        assert told["now"][sequence]["instance"] == target
        assert told["words"][sequence]["entries"][-1].startswith(f"moved from {source} to {target}: by hand")
        stream.task.cancel()
        await asyncio.gather(stream.task, return_exceptions=True)
    past = (await asyncio.to_thread(server.get, f"/llumnix/v1/history?instance={source}")).json()
    assert 1 in past["series"]["running"]


def test_page_is_there_without_the_key(server: Server) -> None:
    page = httpx.get(f"{server.url}/llumnix/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert httpx.get(f"{server.url}/llumnix/page/app.js").status_code == 200
