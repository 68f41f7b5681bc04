"""`llumnix serve` with real processes and an engine that is none (fake_boot.py): starting, dying, ending."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from frame.server import wait_for
from served import Serve, is_alive

pytestmark = pytest.mark.live


def assert_nothing_is_left(server: Serve, children: list[psutil.Process]) -> None:
    assert [path.name for path in server.folder.iterdir()] == ["model"]
    assert [child for child in children if child.is_running()] == []
    assert [child for child in children if server.shared_memory(child.pid).exists()] == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.port)) != 0


def test_starts_says_so_and_leaves_nothing_on_sigterm(serve: Callable[..., Serve]) -> None:
    server = serve("--instances", "3", "--api-server-count", "2")
    assert server.wait_for_line("^serving").endswith(f"at http://127.0.0.1:{server.port}")
    for instance in ("i0", "i1", "i2"):
        server.wait_for_line(rf"^{instance} ready in \d+\.\d s$")
    wait_for(lambda: set(server.instances()) == {"i0", "i1", "i2"}, "three instances")
    children = server.descendants()
    assert len(children) == 7  # nursery, scheduler, two front ends, three instances
    server.process.terminate()
    assert server.end() == 0
    assert_nothing_is_left(server, children)


def test_the_unix_socket_of_a_server_goes_with_it(serve: Callable[..., Serve], tmp_path: Path) -> None:
    path = tmp_path / "llm.sock"
    server = serve("--instances", "1", "--uds", str(path))
    server.wait_for_line("^serving")
    assert path.is_socket()
    server.process.terminate()
    assert server.end() == 0
    assert not path.exists()


def test_killed_instance_is_replaced_under_a_new_id(serve: Callable[..., Serve]) -> None:
    server = serve("--instances", "2")
    server.wait_until_serving()
    wait_for(lambda: len(server.instances()) == 2, "two instances")
    os.kill(server.instances()["i0"], signal.SIGKILL)
    server.wait_for_line("i0 died: killed by SIGKILL; another takes its place")
    wait_for(lambda: set(server.instances()) == {"i1", "i2"}, "i2 in place of i0")


def test_place_of_a_dead_instance_is_used_when_its_workers_are_gone(serve: Callable[..., Serve]) -> None:
    server = serve("--instances", "2", "--workers")
    server.wait_until_serving()
    wait_for(lambda: len(server.instances()) == 2, "two instances")
    instance = psutil.Process(server.instances()["i0"])
    workers = instance.children(recursive=True)
    assert len(workers) == 4
    others = psutil.Process(server.instances()["i1"]).children(recursive=True)
    instance.kill()
    server.wait_for_line("i0 died: killed by SIGKILL; another takes its place")
    wait_for(lambda: "i2" in server.instances(), "i2 in place of i0")
    assert [worker for worker in workers if worker.is_running()] == []
    assert all(worker.is_running() for worker in others)
    children = server.descendants()
    server.process.terminate()
    assert server.end() == 0
    assert_nothing_is_left(server, children)


def test_nothing_is_left_of_an_instance_that_was_killed(serve: Callable[..., Serve]) -> None:
    server = serve("--instances", "2")
    server.wait_until_serving()
    wait_for(lambda: len(server.instances()) == 2, "two instances")
    (private,) = server.folder.glob("llumnix-*")
    assert (private / "i0").is_socket()
    assert (private / "i0.tmp" / "rendezvous").exists()
    pid = server.instances()["i0"]
    assert server.shared_memory(pid).exists()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: set(server.instances()) == {"i1", "i2"}, "i2 in place of i0")
    assert not server.shared_memory(pid).exists()
    assert {path.name for path in private.iterdir() if path.name.startswith("i")} >= {"i1", "i2", "i1.tmp", "i2.tmp"}
    assert not [path for path in private.iterdir() if path.name.startswith("i0")]
    assert [path.name for path in server.folder.iterdir() if path != private] == ["model"]


@pytest.mark.nightly
@pytest.mark.timeout(240)
def test_scheduler_and_front_end_that_hang_are_replaced(serve: Callable[..., Serve]) -> None:
    server = serve("--instances", "1", "--api-server-count", "2", "--step-timeout-s", "1")
    server.wait_until_serving()
    front_end, scheduler = psutil.Process(int(server.get("/pid").text)), server.descendant("scheduler_process")
    for process in (front_end, scheduler):
        process.suspend()
    server.wait_for_line("the scheduler hangs: not heard for 30 s; it is killed")
    server.wait_for_line(r"^llumnix: front-\d died: it hung for 30 s; another takes its place")
    assert not is_alive(front_end)
    wait_for(lambda: server.descendant("scheduler_process").pid != scheduler.pid, "another scheduler")
    wait_for(lambda: int(server.get("/pid").text) != front_end.pid, "an answer of another front end")
    server.process.terminate()
    assert server.end() == 0


@pytest.mark.nightly
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seconds", [32.0, 45.0])
def test_server_that_was_frozen_as_a_whole_goes_on_as_it_was(serve: Callable[..., Serve], seconds: float) -> None:
    """As by a container that is paused. Everybody has been silent for longer than each alone may be."""
    server = serve("--instances", "2", "--api-server-count", "2", "--step-timeout-s", "1")
    server.wait_until_serving()
    wait_for(lambda: len(server.instances()) == 2, "two instances")
    everybody = [psutil.Process(server.process.pid), *server.descendants()]
    for process in everybody:
        process.suspend()
    time.sleep(seconds)
    for process in everybody:
        process.resume()
    time.sleep(12.0)  # longer than any of them may be silent from now on, but the scheduler and front ends
    assert {process.pid for process in everybody} >= {process.pid for process in server.descendants()}
    assert all(map(is_alive, everybody))
    assert len(server.instances()) == 2
    assert not [line for line in server.lines if "killed" in line or "died" in line]


def test_killed_scheduler_and_front_end_come_back(serve: Callable[..., Serve]) -> None:
    server = serve("--instances", "1")
    server.wait_until_serving()
    before = server.descendant("scheduler_process").pid
    os.kill(before, signal.SIGKILL)
    server.wait_for_line("the scheduler died: killed by SIGKILL; it is restarted")
    wait_for(lambda: {child.pid for child in server.descendants("scheduler_process")} - {before}, "another scheduler")
    os.kill(int(server.get("/pid").text), signal.SIGKILL)
    server.wait_for_line("front-0 died: killed by SIGKILL")
    wait_for(lambda: server.get("/health").status_code == 200, "another front end")


def test_silent_instance_is_declared_lost_killed_and_replaced(serve: Callable[..., Serve]) -> None:
    server = serve("--instances", "2", "--heartbeat-interval-s", "0.1", "--instance-timeout-s", "3")
    server.wait_until_serving()
    wait_for(lambda: len(server.instances()) == 2, "two instances")
    os.kill(server.instances()["i1"], signal.SIGSTOP)
    server.wait_for_line("i1 is killed: no heartbeat")
    wait_for(lambda: set(server.instances()) == {"i0", "i2"}, "i2 in place of i1")


def test_instance_that_beats_while_its_engine_hangs_is_killed_and_replaced(serve: Callable[..., Serve]) -> None:
    server = serve("--instances", "2", "--heartbeat-interval-s", "0.1", "--step-timeout-s", "0.5")
    server.wait_until_serving()
    wait_for(lambda: len(server.instances()) == 2, "two instances")
    pid = server.instances()["i1"]
    os.kill(pid, signal.SIGUSR2)
    server.wait_for_line(
        r"i1 is killed: it lives, but its engine did nothing for .* with 0 running, 0 waiting, 1 unread"
    )
    wait_for(lambda: set(server.instances()) == {"i0", "i2"}, "i2 in place of i1")
    assert not psutil.pid_exists(pid)


def test_instance_that_fails_at_first_is_tried_again(serve: Callable[..., Serve]) -> None:
    server = serve("--instances", "2", "--fail-first", "1")
    server.wait_for_line("i0 did not start: ValueError: no room for the KV cache; another takes its place in 0.5 s")
    wait_for(lambda: set(server.instances()) == {"i1", "i2"}, "i2 in place of i0")


def test_gives_up_with_the_reason_when_no_instance_starts(serve: Callable[..., Serve]) -> None:
    server = serve("--instances", "2", "--fail-start")
    assert server.end() == 2
    assert server.lines[-1].startswith("llumnix: No instance starts: ValueError: no room for the KV cache")
    assert_nothing_is_left(server, [])


def test_everything_ends_with_the_nursery(serve: Callable[..., Serve]) -> None:
    server = serve("--instances", "2")
    server.wait_until_serving()
    children = server.descendants()
    server.descendant("cluster.nursery").kill()
    assert server.end() == 1
    assert "The parent of all engine processes ended (killed by SIGKILL)" in server.lines[-1]
    assert_nothing_is_left(server, children)


def test_killed_launcher_leaves_nothing(serve: Callable[..., Serve]) -> None:
    server = serve("--instances", "2")
    server.wait_until_serving()
    children = server.descendants()
    server.process.kill()
    server.end()
    wait_for(lambda: not any(is_alive(child) for child in children), "the end of all children")
    wait_for(lambda: not list(server.folder.glob("llumnix-*")), "the end of the private folder")
    assert not [child for child in children if server.shared_memory(child.pid).exists()]


def test_running_request_may_finish_while_new_ones_are_refused(serve: Callable[..., Serve], tmp_path: Path) -> None:
    server = serve("--instances", "1", "--slow-until", str(tmp_path / "go"))
    server.wait_until_serving()
    answers: list[int] = []
    client = threading.Thread(target=lambda: answers.append(server.get("/slow").status_code))
    client.start()
    wait_for(lambda: server.get("/slow-ones").text == "1", "the request's arrival")
    server.process.terminate()
    server.wait_for_line("stopping")
    wait_for(lambda: refuses(server), "refused connections")
    assert server.process.poll() is None
    (tmp_path / "go").touch()
    client.join()
    assert answers == [200]
    assert server.end() == 0


def refuses(server: Serve) -> bool:
    try:
        server.get("/pid", timeout=0.2)
    except httpx.ConnectError:
        return True
    except httpx.TransportError:
        return False
    return False


def test_any_free_port_is_told(serve: Callable[..., Serve]) -> None:
    server = serve("--instances", "1", "--port", "0")
    port = int(server.wait_for_line("^serving").rpartition(":")[2])
    assert port not in (0, server.port)
    assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    assert f"LLUMNIX_URL=http://127.0.0.1:{port}," in server.wait_for_line("^  next")


def test_end_of_the_terminal_ends_the_server_but_not_under_nohup(serve: Callable[..., Serve]) -> None:
    with_terminal = serve("--instances", "1")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited by what is started now, as nohup does it
    try:
        without = serve("--instances", "1")
    finally:
        signal.signal(signal.SIGHUP, before)
    for server in (with_terminal, without):
        server.wait_until_serving()
        server.process.send_signal(signal.SIGHUP)
    assert with_terminal.end() == 0
    assert without.get("/health").status_code == 200
    without.process.terminate()
    assert without.end() == 0


def test_second_signal_ends_at_once(serve: Callable[..., Serve], tmp_path: Path) -> None:
    server = serve("--instances", "1", "--slow-until", str(tmp_path / "never"))
    server.wait_until_serving()
    children = server.descendants()

    def ask() -> None:
        with pytest.raises(httpx.TransportError):
            server.get("/slow")

    client = threading.Thread(target=ask)
    client.start()
    wait_for(lambda: server.get("/slow-ones").text == "1", "the request's arrival")
    server.process.send_signal(signal.SIGINT)
    server.wait_for_line("stopping")
    server.process.send_signal(signal.SIGINT)
    assert server.end() == 0
    client.join()
    assert_nothing_is_left(server, children)


def test_wrong_flag_of_the_engine_ends_with_exit_code_2(serve: Callable[..., Serve]) -> None:
    server = serve("--no-such-flag")
    assert server.end() == 2
    assert "--no-such-flag" in server.lines[-1]
    assert_nothing_is_left(server, [])


def test_taken_port_ends_with_exit_code_2(serve: Callable[..., Serve]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = serve("--port", str(taken.getsockname()[1]))
        assert server.end() == 2
    assert "address already in use" in server.lines[-1]
    assert_nothing_is_left(server, [])


def test_logs_stay_where_they_were_asked_for(serve: Callable[..., Serve], tmp_path: Path) -> None:
    server = serve("--instances", "1", "--fail-start", "--log-dir", str(tmp_path / "logs"))
    assert server.end() == 2
    first, *_, last = (tmp_path / "logs" / "i0.log").read_text().splitlines()
    assert re.fullmatch(r"\(i0 pid=\d+\) INFO \S+ \S+ \[fake_boot\.py:\d+\] i0 begins", first), first
    assert last.startswith("ValueError: no room")


def test_console_on_a_full_disk_ends_nothing(serve: Callable[..., Serve]) -> None:
    server = serve("--instances", "1", console=Path("/dev/full"))
    wait_for(lambda: serves(server), "an instance")
    server.process.terminate()
    assert server.end() == 0
    assert_nothing_is_left(server, [])


def serves(server: Serve) -> bool:
    try:
        return server.get("/health", timeout=1).status_code == 200
    except httpx.TransportError:
        return False
