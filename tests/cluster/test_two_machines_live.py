"""A server over two network namespaces: who is not one of us is refused, and a cut link ends in fencing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from frame.server import wait_for
from served import Serve, is_alive

from two_machines import TOKEN, TwoMachines

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]

STRANGER = """
import sys, time, zmq
from llumnix.control.scheduler_events import StopInstance
from llumnix.wire.base import encode
from llumnix.wire.news import InstanceGone
context = zmq.Context()
sockets = []
for address in sys.argv[1:]:
    socket = context.socket(zmq.PUSH)
    socket.connect(address)
    sockets.append(socket)
    for message in (
        StopInstance(instance="i0", reason="a stranger says so", kill=True),
        InstanceGone(instance="i0", index=0, why="a stranger says so", expected=False),
    ):
        socket.send(encode(message))
time.sleep(1.5)  # enough for several attempts to get in
context.destroy(linger=0)
"""


@pytest.fixture(scope="module")
def server(machines: TwoMachines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    flags = ("--heartbeat-interval-s", "0.2", "--instance-timeout-s", "2", "--instances", "2")
    server = Serve(
        tmp_path_factory.mktemp("s"),
        "--launcher",
        "ray",
        "--ray-address",
        machines.address,
        *flags,
        more_environment=TOKEN,
    )
    try:
        server.wait_until_serving()
        wait_for(lambda: len(server.nodes()) == 2, "two instances")
        yield server
    finally:
        server.process.terminate()
        try:
            assert server.end() == 0
        finally:
            server.kill()
        assert [path.name for path in server.folder.iterdir()] == ["model"]


def listening(server: Serve, address: str) -> dict[str, int]:
    """Ports of the address at which the server's processes listen, with their pids."""
    processes = [psutil.Process(server.process.pid), *server.descendants()]
    return {
        f"tcp://{connection.laddr.ip}:{connection.laddr.port}": process.pid
        for process in processes
        if "ray" not in process.name()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.ip == address
    }


def test_instances_on_both_machines_are_heard(server: Serve) -> None:
    assert sorted(server.nodes().values()) == ["here", "there"]


def test_what_listens_on_the_link_are_the_guarded_sockets_alone(server: Serve, machines: TwoMachines) -> None:
    pids = {server.process.pid, server.descendant("scheduler_process").pid, int(server.get("/pid").text)}
    assert set(listening(server, machines.other.ours).values()) == pids


def test_stranger_on_the_other_machine_is_refused(server: Serve, machines: TwoMachines) -> None:
    before = server.instances()
    addresses = listening(server, machines.other.ours)
    subprocess.run([*machines.other.inside, sys.executable, "-c", STRANGER, *addresses], check=True, timeout=60)
    server.wait_for_line(f"refused a connection to tcp://{machines.other.ours}")
    assert server.instances() == before
    assert not [line for line in server.lines if "a stranger says so" in line]


def test_cut_link_is_a_stalled_instance_and_does_no_harm_when_it_is_mended(
    server: Serve, machines: TwoMachines
) -> None:
    gone = next(instance for instance, node in server.nodes().items() if node == "there")
    process = psutil.Process(server.instances()[gone])
    machines.other.cut()
    server.wait_for_line(f"{gone} is killed: no heartbeat")
    wait_for(lambda: list(server.nodes().values()) == ["here"], "its removal")
    assert is_alive(process), "nobody can reach it"
    server.wait_for_line("waits for room")
    machines.other.mend()
    wait_for(lambda: not is_alive(process), "the end of the fenced instance")
    wait_for(lambda: sorted(server.nodes().values()) == ["here", "there"], "another in its place")
    assert gone not in server.nodes()
    assert machines.other.theirs not in "".join(server.lines)
