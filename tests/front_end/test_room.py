"""As many requests as there is room for; the others get a sentence."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from typing import Any

import pytest

from llumnix.engine.vllm.front_end import room
from llumnix.engine.vllm.front_end.retry_after import AsgiMessage
from llumnix.engine.vllm.front_end.room import Room, room_for_connections


class Server:
    """Requests that stay open until they are let go."""

    def __init__(self, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(room, "room_for_connections", lambda: most)
        self._room = Room(self._work)
        self._go = asyncio.Event()

    async def _work(self, scope: AsgiMessage, receive: Any, send: Any) -> None:
        await self._go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def let_go(self) -> None:
        self._go.set()

    async def ask(self, path: str = "/v1/completions", kind: str = "http") -> list[AsgiMessage]:
        sent: list[AsgiMessage] = []

        async def send(message: AsgiMessage) -> None:
            sent.append(message)

        async def receive() -> AsgiMessage:
            raise AssertionError("nobody asks for the body")

        await self._room({"type": kind, "path": path}, receive, send)
        return sent


@pytest.mark.parametrize("probe", ["/health", "/ping"])
async def test_one_too_many_gets_a_sentence_and_the_next_one_after_an_end_is_served(
    probe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(2, monkeypatch)
    running = [asyncio.create_task(server.ask()) for _ in range(2)]
    await asyncio.sleep(0)
    start, body = await server.ask()
    assert start["status"] == 503
    assert (b"connection", b"close") in start["headers"]
    assert json.loads(body["body"])["error"]["message"].startswith("This front end may have no more than 2 requests")
    asked = asyncio.create_task(server.ask(probe))
    await asyncio.sleep(0)
    assert not asked.done(), "not refused"
    server.let_go()
    assert [answer[0]["status"] for answer in await asyncio.gather(*running, asked)] == [200] * 3
    assert (await server.ask())[0]["status"] == 200


def test_room_is_what_the_system_allows_less_what_is_open_and_a_reserve() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = len(os.listdir("/proc/self/fd"))
    assert room_for_connections() == max(1, soft - descriptors - 96)


async def test_websockets_take_room_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(1, monkeypatch)
    running = asyncio.create_task(server.ask("/v1/realtime", kind="websocket"))
    await asyncio.sleep(0)
    (refusal,) = await server.ask("/v1/realtime", kind="websocket")
    assert (refusal["type"], refusal["code"]) == ("websocket.close", 1013)
    assert (await server.ask())[0]["status"] == 503
    server.let_go()
    await running
