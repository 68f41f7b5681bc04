"""The streams of the live page over a real socket: who gets them, and that the server does not notice who watches."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

pytest.importorskip("vllm")

from frame.page_server import PageServer, page_server
from frame.pretend import PretendCluster
from frame.server import wait_for

from llumnix.api import frames
from llumnix.engine.vllm.front_end.page import stream
from llumnix.engine.vllm.front_end.page.feed import MOST_VIEWERS, Feed, Picture
from llumnix.engine.vllm.front_end.page.stream import Watching

WATCH = "/llumnix/v1/watch"
SOON_S = 5.0


@pytest.fixture
def server() -> Iterator[PageServer]:
    with page_server(PretendCluster(3), past_s=60) as running:
        yield running


@contextmanager
def watching(server: PageServer, path: str = WATCH, **headers: str) -> Iterator[Iterator[Any]]:
    """Its frames as they come."""
    with (
        httpx.Client(timeout=SOON_S) as client,
        client.stream("GET", f"{server.url}{path}", headers=headers) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield (json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line)


def test_rows_put_together_from_frames_are_what_the_route_lists(server: PageServer) -> None:
    rows: dict[str, Any] = {}
    with watching(server) as told:
        first = next(told)
        assert first["whole"]
        assert first["server"]["model"] == "tiny"
        for frame in [first, *(next(told) for _ in range(3))]:
            rows |= {row["id"]: row for row in frame["instances"]}
    listed = httpx.get(f"{server.url}/llumnix/v1/instances").json()["instances"]
    assert [row.keys() for row in rows.values()] == [row.keys() for row in listed]
    assert rows.keys() == {row["id"] for row in listed}


def test_frame_has_only_what_has_changed() -> None:
    with page_server(PretendCluster(3), steps=False) as still, watching(still) as told:
        assert len(next(told)["instances"]) == 3
        frame = next(told)
    assert (frame["whole"], frame["instances"], frame["moves"]) == (False, [], [])
    assert frame.keys().isdisjoint({"server", "freeness_limits", "scheduler"})


def test_requests_are_told_of_while_somebody_looks(server: PageServer) -> None:
    with watching(server, f"{WATCH}/requests") as told:
        first, second = next(told), next(told)
    assert first["whole"]
    assert 0 < len(first["requests"]) <= first["total"]
    keys = {row["key"] for row in first["requests"]}
    assert set(second["away"]) <= keys


def test_one_viewer_too_many_is_told_so_and_a_place_that_is_left_is_free(server: PageServer) -> None:
    with ExitStack() as viewers:
        told = [viewers.enter_context(watching(server)) for _ in range(MOST_VIEWERS)]
        assert all(next(frames)["whole"] for frames in told)
        refused = httpx.get(f"{server.url}{WATCH}")
        assert refused.status_code == 503
        assert refused.json()["reason"] == "16 viewers watch already, and no more can; close a page somewhere."
        with watching(server, f"{WATCH}/requests"):
            pass  # places are counted for each stream
    wait_for(lambda: not server.page.cluster.is_full, "a free place")
    with watching(server) as again:
        next(again)


def test_viewers_that_come_and_go_at_once_leave_nothing(server: PageServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for _ in range(3 * MOST_VIEWERS):
        with socket.create_connection((host, int(port))) as rude:
            rude.sendall(f"GET {WATCH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    wait_for(lambda: server.page.cluster._viewers == 0, "no viewer")


def test_server_ends_at_once_although_somebody_watches() -> None:
    with page_server(PretendCluster(3)) as server, watching(server) as told, watching(server) as unread:
        next(told), next(unread)
        server.server.config.timeout_graceful_shutdown = 60
        began = time.monotonic()
        server.server.should_exit = True
        assert all(not frame["whole"] for frame in told), "it ends as it should, with nothing cut"
        wait_for(lambda: not server.server.server_state.connections, "all connections closed")
        assert time.monotonic() - began < 30.0


async def test_viewer_that_reads_nothing_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "UNREAD_S", 0.05)

    async def look() -> Picture:
        frame = frames.RequestsFrame(whole=True, at=0.0, total=0, requests=[], away=[])
        return Picture(frame, frame)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(3600)

    async def receive() -> Any:
        await asyncio.sleep(3600)

    feed = Feed(look, 0.01, lambda: False)
    running = asyncio.create_task(feed.run())
    async with asyncio.timeout(SOON_S):
        await Watching(feed)({"type": "http"}, receive, send)
    assert feed._viewers == 0
    running.cancel()


def test_stream_wants_the_key_and_no_page_of_a_stranger(server: PageServer) -> None:
    with page_server(PretendCluster(1), keys=["sesame"]) as locked:
        assert httpx.get(f"{locked.url}{WATCH}").status_code == 401
        with watching(locked, Authorization="Bearer sesame") as told:
            assert next(told)["whole"]
        assert httpx.get(f"{locked.url}/llumnix/").status_code == 200, "it asks for the key"
    for name in ("watch", "watch/requests", "history"):
        foreign = httpx.get(f"{server.url}/llumnix/v1/{name}", headers={"Origin": "http://evil.example"})
        assert foreign.status_code == 403


def test_past_is_told_of_the_cluster_and_of_each_instance(server: PageServer) -> None:
    ask = f"{server.url}/llumnix/v1/history"
    cluster, one = httpx.get(ask).json(), httpx.get(f"{ask}?instance=i1").json()
    assert cluster["at"] == sorted(cluster["at"])
    assert len(cluster["at"]) >= 60
    assert {len(numbers) for numbers in cluster["series"].values()} == {len(cluster["at"])}
    assert set(one["series"]) == {"memory", "running", "waiting", "freeness"}
    unknown, wrong = httpx.get(f"{ask}?instance=i99"), httpx.get(f"{ask}?of=i1")
    assert (unknown.status_code, wrong.status_code) == (404, 400)
    assert unknown.json()["reason"] == "There is no instance 'i99' that takes requests."
