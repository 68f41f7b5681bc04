"""A front end's heartbeat."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from llumnix.engine.vllm.front_end import serve
from llumnix.wire.to_launcher import FrontEndLives


async def test_launcher_hears_again_and_again_that_a_front_end_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_ALIVE_INTERVAL_S", 0.01)
    posted: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    book = SimpleNamespace(launcher="ipc://launcher")
    board: Any = SimpleNamespace(
        spec=SimpleNamespace(index=1, book=book), post=lambda *letter: posted.put_nowait(letter)
    )
    task = asyncio.create_task(serve._tell_that_it_lives(board))
    async with asyncio.timeout(10):
        letters = [await posted.get() for _ in range(3)]
    task.cancel()
    assert letters == [("ipc://launcher", FrontEndLives(front_end=1, pid=os.getpid()))] * 3
