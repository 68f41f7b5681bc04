"""Two workers per instance that are forked by it, as vLLM has it on GPUs: with all that the instance has imported, and
without what a spawned one does at its start."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from frame.checked import Server
from frame.equality import assert_moved, compare
from frame.server import wait_for
from frame.stream import open_session

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(280)]

FLAGS = (
    *("--no-migration", "--tensor-parallel-size", "2", "--max-model-len", "2048"),
    *("--distributed-executor-backend", "mp"),
)
_PATH = os.pathsep.join(filter(None, (str(Path(__file__).with_name("forked")), os.environ.get("PYTHONPATH"))))
ENVIRONMENT = {"TORCH_COMPILE_DISABLE": "1", "PYTHONPATH": _PATH}


def workers_of(server: Server) -> list[psutil.Process]:
    children = psutil.Process(server.instances()[0]["pid"]).children()
    workers = [child for child in children if "resource_tracker" not in str(child.cmdline())]
    # Who is spawned begins with the environment that vLLM has made by then.
    assert not any("VLLM_WORKER_MULTIPROC_METHOD" in each.environ() for each in workers), "they are forked"
    return workers


async def test_moved_streams_say_what_undisturbed_ones_say(server: Server) -> None:
    assert len(workers_of(server)) == 2
    async with open_session(server.url) as session:
        rows = await compare(session, 2, seed=4, concurrency=2, kinds=["greedy", "seeded top_p"])
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    assert_moved(rows)


def test_workers_end_with_their_instance(server: Server) -> None:
    workers = workers_of(server)
    ended = server.instances()[0]
    os.kill(ended["pid"], signal.SIGKILL)
    wait_for(lambda: not any(map(psutil.pid_exists, (each.pid for each in workers))), "the end of the workers", 20.0)
    wait_for(lambda: {row["id"] for row in server.instances()} == {"i1", "i2"}, "i2 in place of i0", 120.0)
