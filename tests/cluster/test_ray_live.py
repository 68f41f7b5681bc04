"""`llumnix serve --launcher ray` on a real Ray cluster of several nodes, with an engine that is none (fake_boot.py)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from frame.server import WAIT_S, wait_for
from served import Serve, is_alive

from two_machines import TOKEN, ray_folder

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]

HERE = Path(__file__).parent


class Nodes:
    """ray_nodes.py, at work. The folders of instances on its nodes are below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ray_dir = ray_folder()
        environment = (
            os.environ
            | TOKEN
            | {
                "TMPDIR": str(folder),
                "RAY_TMPDIR": self._ray_dir,
                "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}",
            }
        )
        environment.pop("XDG_RUNTIME_DIR", None)
        with (folder / "nodes.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "ray_nodes.py")],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            self.address = self.ask("address")
        except BaseException:
            self.close()
            raise

    def ask(self, order: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("=> "):
                return line.removeprefix("=> ").strip()
        raise AssertionError(f"no answer to {order!r}")

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(WAIT_S)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            shutil.rmtree(self._ray_dir, ignore_errors=True)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path_factory.mktemp("n"))
    for name in ("a", "b"):
        nodes.ask(f"add {name} 2")
    yield nodes
    nodes.close()


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Serve]]:
    started: list[Serve] = []

    def start(*flags: str) -> Serve:
        token = TOKEN if "--ray-address" in flags else {}
        started.append(Serve(tmp_path_factory.mktemp("s"), "--launcher", "ray", *flags, more_environment=token))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
        server.end()


def wait_for_instances(server: Serve, count: int) -> dict[str, str]:
    """Nodes by instance."""
    wait_for(lambda: len(server.nodes()) == count, f"{count} instances")
    return server.nodes()


def test_instances_come_go_and_come_back_with_the_nodes(nodes: Nodes, serve: Callable[..., Serve]) -> None:
    server = serve("--ray-address", nodes.address, "--instances", "3")
    server.wait_until_serving()
    where = wait_for_instances(server, 3)
    assert sorted(Counter(where.values()).values()) == [1, 2], f"not spread: {where} {server.lines}"

    one = next(instance for instance in where if Counter(where.values())[where[instance]] == 1)
    os.kill(server.instances()[one], signal.SIGKILL)
    server.wait_for_line(f"{one} died: killed by SIGKILL; another takes its place")
    wait_for(lambda: one not in server.nodes(), "the end of the killed one")
    where = wait_for_instances(server, 3)

    pids = [psutil.Process(pid) for pid in server.instances().values()]
    lost = [instance for instance in where if where[instance] == "a"]
    nodes.ask("kill a")
    for instance in lost:
        server.wait_for_line(f"{instance} died: its node a was lost")
    server.wait_for_line("waits for room: it needs 1 CPU, and no node has that free")
    where = wait_for_instances(server, 2)
    assert set(where.values()) == {"b"}
    assert [server.lines.count(line) for line in server.lines if "waits for room" in line] == [1], "said once"

    nodes.ask("add c 1")
    where = wait_for_instances(server, 3)
    assert Counter(where.values()) == {"b": 2, "c": 1}

    pids += [psutil.Process(pid) for pid in server.instances().values()]
    server.process.terminate()
    assert server.end() == 0
    assert nodes.ask("groups") == "0"
    wait_for(lambda: not any(is_alive(process) for process in pids), "the end of all instances")
    assert [path.name for path in server.folder.iterdir()] == ["model"]


def test_instances_move_out_of_a_node_that_is_taken_back_and_others_start_before(
    nodes: Nodes, serve: Callable[..., Serve]
) -> None:
    nodes.ask("add d 2")
    server = serve("--ray-address", nodes.address, "--instances", "2", "--placement", "pack")
    server.wait_until_serving()
    where = wait_for_instances(server, 2)
    (node,) = set(where.values())
    assert nodes.ask(f"drain {node} 60") == "True"
    for instance in where:
        server.wait_for_line(f"{instance} moves out: {node} is being drained; another starts for it")
        server.wait_for_line(f"{instance} stopped: empty after")
    after = wait_for_instances(server, 2)
    assert not after.keys() & where.keys()
    assert node not in after.values()
    nodes.ask(f"kill {node}")
    server.process.terminate()
    assert server.end() == 0
    assert not any("died" in line for line in server.lines), server.lines


def test_packed_and_what_an_instance_left_running_is_gone_when_another_takes_its_place(
    nodes: Nodes, serve: Callable[..., Serve]
) -> None:
    server = serve("--ray-address", nodes.address, "--instances", "2", "--placement", "pack", "--workers")
    server.wait_until_serving()
    where = wait_for_instances(server, 2)
    assert len(set(where.values())) == 1, "packed"
    instance, other = (psutil.Process(server.instances()[one]) for one in ("i0", "i1"))
    workers, others = instance.children(recursive=True), other.children(recursive=True)
    assert len(workers) == len(others) == 4
    instance.kill()
    wait_for(lambda: "i2" in server.instances(), "i2 in place of i0")
    assert not any(is_alive(worker) for worker in workers)
    assert all(is_alive(worker) for worker in others)
    server.process.terminate()
    assert server.end() == 0
    wait_for(lambda: not any(is_alive(worker) for worker in others), "the end of all workers")


def test_nothing_is_left_of_a_killed_launcher_on_two_nodes(nodes: Nodes, serve: Callable[..., Serve]) -> None:
    server = serve("--ray-address", nodes.address, "--instances", "2")
    server.wait_until_serving()
    where = wait_for_instances(server, 2)
    assert len(set(where.values())) == 2, "spread"
    shared_memory = [server.shared_memory(pid) for pid in server.instances().values()]
    assert all(file.exists() for file in shared_memory)
    assert len(list(nodes.folder.glob("llumnix-*"))) == 2
    processes = [psutil.Process(pid) for pid in server.instances().values()] + server.descendants()
    server.process.kill()
    server.end()
    wait_for(lambda: not any(is_alive(process) for process in processes), "the end of all processes")
    wait_for(lambda: nodes.ask("groups") == "0", "the end of all placement groups")
    for folder in (server.folder, nodes.folder):
        wait_for(partial(_is_empty, folder), f"the end of all private folders in {folder}")
    assert not [file for file in shared_memory if file.exists()]


def _is_empty(folder: Path) -> bool:
    return not list(folder.glob("llumnix-*"))


def test_server_that_is_there_before_a_node_is_large_enough_waits_for_one(
    nodes: Nodes, serve: Callable[..., Serve]
) -> None:
    server = serve("--ray-address", nodes.address, "--instances", "1", "--instance-cpus", "64")
    server.wait_for_line("i0 waits for room: it needs 64 CPU, and no node is that large: the largest has 2 CPU")
    nodes.ask("add large 64")
    server.wait_until_serving()
    assert wait_for_instances(server, 1) == {"i0": "large"}
    server.process.terminate()
    assert server.end() == 0
    assert nodes.ask("groups") == "0"
    nodes.ask("kill large")


def test_first_instances_that_fail_end_it_with_their_reason(nodes: Nodes, serve: Callable[..., Serve]) -> None:
    server = serve("--ray-address", nodes.address, "--instances", "1", "--fail-start")
    assert server.end() == 2
    assert server.lines[-1].startswith("llumnix: No instance starts: ValueError: no room for the KV cache")
    assert nodes.ask("groups") == "0"


def test_without_an_address_a_cluster_is_made_and_ended(serve: Callable[..., Serve], tmp_path: Path) -> None:
    server = serve("--instances", "3", "--log-dir", str(tmp_path))
    server.wait_until_serving()
    wait_for_instances(server, 3)
    processes = server.descendants()
    server.process.terminate()
    assert server.end() == 0
    wait_for(lambda: not any(is_alive(process) for process in processes), "the end of the cluster")
    for instance in ("i0", "i1", "i2"):
        assert (tmp_path / f"{instance}.log").read_text().endswith("ended when it was told to\n")
    assert [path.name for path in server.folder.iterdir()] == ["model"]


def test_address_where_nobody_listens(serve: Callable[..., Serve]) -> None:
    server = serve("--ray-address", "127.0.0.1:1")
    assert server.end() == 2
    assert server.lines == ["llumnix: The Ray cluster at 127.0.0.1:1 cannot be reached: connection refused."]
