"""Who connects and says nothing, while others want to ask."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import pytest
import uvicorn

pytest.importorskip("vllm")

from llumnix.engine.vllm.front_end import silent_connections
from llumnix.engine.vllm.front_end.silent_connections import HttpConnection, SilentConnections

WAIT_S = 10.0


class Made:
    """A connection as far as it matters who it is."""

    def __init__(self, has_asked: bool = False) -> None:
        self.has_asked = has_asked
        self.aborted = False
        self.transport = self

    def abort(self) -> None:
        self.aborted = True


class Descriptors:
    """A hundred at most, of which twenty are kept from the silent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(silent_connections, "monotonic", lambda: self.now)
        self.silent = SilentConnections(most_files=100, kept_free=20)

    def take(self, descriptor: int, has_asked: bool = False) -> Made:
        made = Made(has_asked)
        self.silent.came(made, descriptor)
        return made


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> Descriptors:
    return Descriptors(monkeypatch)


def test_where_descriptors_are_short_the_oldest_silent_connection_makes_room(descriptors: Descriptors) -> None:
    asked, first, second = descriptors.take(10, has_asked=True), descriptors.take(11), descriptors.take(12)
    descriptors.now += 5.0
    assert not any(made.aborted for made in (asked, first, second)), "there is room"
    newest = descriptors.take(80)
    assert (asked.aborted, first.aborted, second.aborted, newest.aborted) == (False, True, False, False)
    descriptors.silent.went(second)
    assert not descriptors.take(81).aborted
    assert not second.aborted, "gone already"


def test_who_has_just_come_may_be_about_to_ask(descriptors: Descriptors) -> None:
    burst = [descriptors.take(descriptor) for descriptor in range(60, 84)]
    assert not any(made.aborted for made in burst)
    assert [descriptors.take(descriptor).aborted for descriptor in (84, 85)] == [True, True], "the last are for others"


class Site:
    """uvicorn with our connections, and what clients see of it."""

    def __init__(self) -> None:
        self.port = 0

    async def serve(self, keep_alive_s: int = 60) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            if scope["type"] == "websocket":
                await send({"type": "websocket.accept"})
                await receive()
                return
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        sock = socket.create_server(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        print(self.port, flush=True)
        config = uvicorn.Config(
            app, http=HttpConnection, lifespan="off", log_config=None, timeout_keep_alive=keep_alive_s
        )
        self.server = uvicorn.Server(config)
        await self.server._serve([sock])

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(silent_connections, "FIRST_REQUEST_S", 0.3)
    monkeypatch.setattr(HttpConnection, "silent", None)
    site = Site()
    task = asyncio.create_task(site.serve())
    while not (site.port and site.server.started):  # noqa: ASYNC110 nothing else tells
        await asyncio.sleep(0.01)
    yield site
    site.server.should_exit = True
    await task


@pytest.mark.parametrize("said", [b"", b"GET / HT"])
async def test_connection_on_which_no_request_comes_is_closed(site: Site, said: bytes) -> None:
    reader, writer = await site.connect()
    writer.write(said)
    async with asyncio.timeout(WAIT_S):
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("asked_before", [False, True])
def test_what_was_sent_while_the_server_was_frozen_is_answered(asked_before: bool) -> None:
    """On uvloop, as front ends are: a process that goes on finds its deadlines before it finds what came."""
    request = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"
    with subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE) as server, ExitStack() as stack:
        stack.callback(server.kill)
        assert server.stdout is not None
        client = socket.create_connection(("127.0.0.1", int(server.stdout.readline())))
        stack.enter_context(client).settimeout(WAIT_S)
        if asked_before:
            client.sendall(request)
            assert client.recv(4096).startswith(b"HTTP/1.1 204")
        time.sleep(0.2)
        server.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        client.sendall(request)
        time.sleep(1.5)
        server.send_signal(signal.SIGCONT)
        assert client.recv(4096).startswith(b"HTTP/1.1 204")


async def test_websocket_may_rest_and_is_none_of_them(site: Site) -> None:
    reader, writer = await site.connect()
    upgrade = (
        "GET / HTTP/1.1\r\nhost: here\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    )
    writer.write(f"{upgrade}sec-websocket-key: {'A' * 22}==\r\n\r\n".encode())
    async with asyncio.timeout(WAIT_S):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    assert HttpConnection.silent is not None
    assert HttpConnection.silent._since_s == {}
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.6)
    writer.close()


async def test_connection_that_has_asked_once_may_rest(site: Site) -> None:
    reader, writer = await site.connect()
    for pause_s in (0.5, 0.0):
        writer.write(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
        async with asyncio.timeout(WAIT_S):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        await asyncio.sleep(pause_s)
    assert HttpConnection.silent is not None
    writer.close()
    async with asyncio.timeout(WAIT_S):
        while HttpConnection.silent._since_s:  # noqa: ASYNC110 nothing else tells
            await asyncio.sleep(0.01)


if __name__ == "__main__":
    import uvloop

    silent_connections.FIRST_REQUEST_S = 1.0
    uvloop.run(Site().serve(keep_alive_s=1))
