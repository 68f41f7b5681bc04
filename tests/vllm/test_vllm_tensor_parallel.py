"""Two workers per instance, each in a process of its own: KV moves from rank to rank."""

from __future__ import annotations

import ipaddress
import os
import signal
from pathlib import Path

import psutil
import pytest
from frame.checked import Server
from frame.equality import assert_moved, compare
from frame.server import wait_for
from frame.stream import open_session

pytestmark = pytest.mark.timeout(280)

FLAGS = (
    *("--no-migration", "--tensor-parallel-size", "2", "--max-model-len", "2048"),
    *("--distributed-executor-backend", "mp"),
)
ENVIRONMENT = {"TORCH_COMPILE_DISABLE": "1"}
"""What vLLM compiles for several workers in spite of --enforce-eager would take half of the start."""


async def test_moved_streams_say_what_undisturbed_ones_say(server: Server) -> None:
    async with open_session(server.url) as session:
        rows = await compare(session, 2, seed=4, concurrency=2, kinds=["greedy", "seeded top_p"])
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    assert_moved(rows)


def test_nothing_of_an_instance_listens_where_another_machine_could_reach_it(server: Server) -> None:
    for row in server.instances():
        instance = psutil.Process(row["pid"])
        sockets = [
            each for one in (instance, *instance.children(recursive=True)) for each in one.net_connections("tcp")
        ]
        heard = {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
        assert heard
        assert all(ipaddress.ip_address(address).is_loopback for address in heard), heard


@pytest.mark.nightly
def test_workers_that_hang_end_with_their_instance_and_with_the_server(tmp_path: Path) -> None:
    """They are stopped here: as in a driver that does not return, they notice nothing."""
    server = Server(tmp_path, *FLAGS, instances=1, recorded=False)
    try:
        workers = hang_workers(server.instances()[0]["pid"])
        server.signal_instance("i0", signal.SIGKILL)
        wait_for(lambda: [row["id"] for row in server.instances()] == ["i1"], "i1 in place of i0", 120.0)
        assert not any(is_alive(worker) for worker in workers)
        workers = hang_workers(server.instances()[0]["pid"])
    finally:
        server.kill()
    wait_for(lambda: not any(is_alive(worker) for worker in workers), "the end of all workers", 20.0)


def hang_workers(instance: int) -> list[psutil.Process]:
    workers = [child for child in psutil.Process(instance).children() if "resource_tracker" not in str(child.cmdline())]
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)
    return workers


def is_alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
