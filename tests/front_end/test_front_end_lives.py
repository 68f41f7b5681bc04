"""A front end's heartbeat."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from llumnix.engine.vllm.front_end import serve
from llumnix.wire.to_launcher import FrontEndLives

LIVES = ("ipc://launcher", FrontEndLives(front_end=1, pid=os.getpid()))


@contextlib.asynccontextmanager
async def heartbeat(sock: Any) -> AsyncIterator[asyncio.Queue[tuple[str, Any]]]:
    """What is posted."""
    posted: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    book = SimpleNamespace(launcher="ipc://launcher")
    board: Any = SimpleNamespace(
        spec=SimpleNamespace(index=1, book=book), post=lambda *letter: posted.put_nowait(letter)
    )
    task = asyncio.create_task(serve._tell_that_it_lives(board, sock))
    async with asyncio.timeout(10):
        yield posted
    task.cancel()


async def test_launcher_hears_again_and_again_that_a_front_end_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_ALIVE_INTERVAL_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with heartbeat(sock) as posted:
            assert [await posted.get() for _ in range(3)] == [LIVES] * 3


async def test_launcher_hears_that_a_front_end_lives_once_it_listens_and_no_sooner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else one that can never listen would count as one that served, or one that served and then died as one that
    cannot start."""
    monkeypatch.setattr(serve, "_ALIVE_INTERVAL_S", 3600.0)
    monkeypatch.setattr(serve, "_LISTENS_INTERVAL_S", 0.001)
    listens = [0, 0, 1]
    sock: Any = SimpleNamespace(getsockopt=lambda _level, _what: listens.pop(0))
    async with heartbeat(sock) as posted:
        assert await posted.get() == LIVES
    assert listens == []
