"""What a front end does beside its requests: nobody waits for it, so its failure is told."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("vllm")

from llumnix.engine.vllm.front_end.loud_tasks import LoudTasks


async def fails() -> None:
    raise ValueError("no room")


async def ends() -> None: ...


async def test_failed_task_is_told_in_the_log_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    tasks = LoudTasks()
    for work in (fails(), ends(), asyncio.sleep(60)):
        tasks.spawn(work)
    for _ in range(3):
        await asyncio.sleep(0)
    (sleeper,) = tasks._tasks
    sleeper.cancel()
    await asyncio.wait({sleeper})
    await asyncio.sleep(0)
    (told,) = caplog.records
    assert (told.levelname, str(told.exc_info[1])) == ("CRITICAL", "no room")  # type: ignore[index]
    assert not tasks._tasks, "none is kept for ever"
