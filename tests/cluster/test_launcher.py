"""The launcher's loop, without any process below it."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llumnix.cluster import nursery_messages, supervision
from llumnix.cluster.awake import AwakeClock
from llumnix.cluster.launcher import Launcher
from llumnix.cluster.service_manager import ServiceManager
from llumnix.control.scheduler_events import StartInstances
from llumnix.flags import parse_serve
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, InstanceState
from llumnix.wire.addresses import on_one_machine
from llumnix.wire.base import InstanceInfo
from llumnix.wire.news import Report
from llumnix.wire.to_launcher import FrontEndLives, SchedulerLives

pytestmark = pytest.mark.io

_STORM = 1000


def test_scheduler_that_cannot_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be too many processes, or too little memory, for a moment."""

    def full(*_: Any) -> Any:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("llumnix.cluster.launcher.SchedulerChild", full)
    launcher: Any = Launcher(parse_serve(["--verbose"]), "", on_one_machine(tmp_path))
    launcher._carry_out(supervision.SpawnScheduler())
    (event,) = (launcher._events.get() for _ in range(launcher._events.qsize()))
    assert isinstance(event, supervision.SchedulerExited)
    assert "unavailable" in event.why
    launcher._mailbox.close()


@pytest.mark.parametrize(("loaded", "code"), [(False, 2), (True, 1)])
def test_failure_is_one_of_the_start_only_until_the_engine_is_loaded(tmp_path: Path, loaded: bool, code: int) -> None:
    """A service manager does not start again what ends with 2."""
    launcher: Any = Launcher(parse_serve(["--verbose"]), "", on_one_machine(tmp_path))
    launcher._nursery = SimpleNamespace(receive=lambda: nursery_messages.Failed(why="Ray failed: it is gone."))
    launcher._loaded = loaded
    launcher._on_nursery()
    assert launcher._finish == supervision.Finish(code, "Ray failed: it is gone.")
    launcher._mailbox.close()


@pytest.mark.parametrize(("where", "kept"), [("local", {"front-0", "i0"}), ("ray", {"front-0"})])
def test_log_of_an_instance_is_kept_small_by_whoever_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, kept: set[str]
) -> None:
    """On Ray that may be in the same folder, and two who move one log to its older file lose it."""
    launcher: Any = Launcher(parse_serve(["--verbose", "--launcher", where]), "", on_one_machine(tmp_path))
    launcher._nursery = SimpleNamespace(pid=1)
    launcher._supervisor = SimpleNamespace(processes=("front-0", "i0"), instances=("i0",))
    seen: set[str] = set()
    launcher._logs = SimpleNamespace(keep_small=seen.update)
    monkeypatch.setattr("llumnix.cluster.launcher.reap_orphans", lambda _: None)
    launcher._keep_house()
    assert seen == kept | {"nursery", "scheduler"}
    launcher._mailbox.close()


def test_launcher_hears_that_the_scheduler_lives(tmp_path: Path) -> None:
    launcher: Any = Launcher(parse_serve(["--verbose"]), "", on_one_machine(tmp_path))
    launcher._on_message(SchedulerLives())
    assert launcher._events.get_nowait() == SchedulerLives()
    launcher._mailbox.close()


@pytest.mark.parametrize(
    ("state", "keep", "goes"),
    [
        (InstanceState.RUNNING, False, False),
        (InstanceState.DRAINING, False, True),
        (InstanceState.DRAINING, True, False),
    ],
)
def test_launcher_hears_whether_an_instance_is_to_go(
    tmp_path: Path, state: InstanceState, keep: bool, goes: bool
) -> None:
    launcher: Any = Launcher(parse_serve(["--verbose"]), "", on_one_machine(tmp_path))
    name = InstanceId("i0")
    snapshot = InstanceSnapshot(id=name, at=1.0, seq=1, total_blocks=9, free_blocks=9, state=state, drain_keep=keep)
    info = InstanceInfo(id=name, index=0, slot=0, pid=1, node="here", control="ipc://i0", data="none")
    launcher._on_message(Report(info=info, snapshot=snapshot))
    assert launcher._events.get_nowait() == supervision.InstanceServes(
        name, "ipc://i0", goes, state is InstanceState.DRAINING
    )
    launcher._mailbox.close()


@pytest.mark.parametrize("frozen_s", [31.0, 45.0, 150.0])
def test_who_stood_still_together_with_the_launcher_is_not_late(tmp_path: Path, frozen_s: float) -> None:
    launcher: Any = Launcher(parse_serve(["--verbose", "--instances", "1"]), "", on_one_machine(tmp_path))
    sent: list[Any] = []
    now = [100.0]
    launcher._clock = AwakeClock(lambda: now[0])
    launcher._nursery = SimpleNamespace(send=sent.append)
    launcher._spawn_scheduler = lambda: None
    launcher._scheduler = SimpleNamespace(stop=sent.append)
    launcher._tell_supervisor(supervision.TimePassed())
    launcher._tell_supervisor(nursery_messages.Forked(child="front-0", pid=7))
    launcher._tell_supervisor(FrontEndLives(front_end=0, pid=7))
    launcher._tell_supervisor(SchedulerLives())
    sent.clear()
    now[0] += frozen_s
    launcher._tell_supervisor(supervision.TimePassed())
    assert sent == []
    for _ in range(29):
        now[0] += 1.0
        launcher._tell_supervisor(supervision.TimePassed())
    assert sent == [True], "the scheduler, for which a wait without end is not due to a freeze, and nobody else"
    launcher._mailbox.close()


def test_service_manager_hears_at_once_of_a_launcher_that_stood_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its patience, of 30 s, ends by its own clock, which went on."""
    launcher: Any = Launcher(parse_serve(["--verbose"]), "", on_one_machine(tmp_path))
    passes_s, now, told = [1.0, 20.0], [100.0], []
    with monkeypatch.context() as patched:
        patched.setattr(time, "monotonic", lambda: now[0])
        launcher._clock = AwakeClock(lambda: now[0])
        launcher._manager = ServiceManager({"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "30000000"})
        launcher._manager._tell = lambda _: told.append(now[0])

        def wait(_due_s: float) -> None:
            now[0] += passes_s.pop(0)
            launcher._finish = None if passes_s else supervision.Finish(0, "")

        launcher._wait_until = wait
        launcher._loop()
    assert told == [101.0, 121.0]
    launcher._mailbox.close()


def test_exits_are_seen_while_events_come_faster_than_they_are_handled(tmp_path: Path) -> None:
    launcher: Any = Launcher(parse_serve(["--verbose"]), "", on_one_machine(tmp_path))
    ours, nursery = nursery_messages.channel()
    launcher._nursery = SimpleNamespace(channel=ours, receive=lambda: nursery_messages.receive_from_nursery(ours))
    seen: list[supervision.SupervisorEvent] = []

    def handle(event: supervision.SupervisorEvent, _at: float) -> list[supervision.SupervisorCommand]:
        seen.append(event)
        assert len(seen) < _STORM, "the loop never comes to the exit"
        launcher._post(StartInstances(count=1, reason="each one brings another one", order=1))
        return []

    launcher._supervisor.handle = handle
    launcher._post(StartInstances(count=1, reason="the first one", order=1))
    nursery_messages.send(nursery, nursery_messages.Exited(child="i0", how="killed"))
    launcher._wait_until(time.monotonic())
    launcher._wait_until(time.monotonic())
    assert [type(event) for event in seen] == [
        StartInstances, nursery_messages.Exited, StartInstances, StartInstances
    ]  # fmt: skip
    launcher._mailbox.close()
    ours.close()
    nursery.close()
