"""When an instance's engine did something last, as its heartbeats tell it while the main thread is elsewhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig
from llumnix.control.latest_steps import FORGOTTEN_S
from llumnix.engine.port import InstanceSpec
from llumnix.engine.vllm.instance import reports
from llumnix.engine.vllm.instance.reports import Reports
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId
from llumnix.wire.addresses import on_one_machine
from llumnix.wire.base import InstanceInfo
from llumnix.wire.news import Report

I0 = InstanceId("i0")


class Instance:
    """Reports without an engine, on a clock that stands still until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> None:
        self.now = 100.0
        self.unread = 0
        self.running = 0
        self.slowdown = 1.0
        self.heard: list[Report] = []
        self.to: list[str] = []
        info = InstanceInfo(id=I0, index=0, slot=0, pid=1, node="here", control="", data="")
        spec = InstanceSpec(
            id=I0,
            index=0,
            slot=0,
            device_slot=0,
            node="here",
            book=on_one_machine(run_dir),
            policy=PolicyConfig(),
            migration=MigrationConfig(),
            cluster=ClusterConfig(),
            secret=b"",
        )
        monkeypatch.setattr(reports, "monotonic", lambda: self.now)
        monkeypatch.setattr(reports, "instance_snapshot", self._snapshot)
        mailbox: Any = SimpleNamespace(post=self._post, post_soon=lambda addresses, report: self.heard.append(report))
        driver: Any = SimpleNamespace(info=info, counters={}, engine_pins="")
        scheduler: Any = SimpleNamespace(prefixes=None)
        self.reports = Reports(spec, scheduler, driver, mailbox, lambda: (0,), lambda: self.unread)
        self.reports.send()

    def _snapshot(self, _scheduler: object, fixed: dict[str, Any], _steps: int) -> InstanceSnapshot:
        return InstanceSnapshot(
            id=I0,
            at=fixed["at"],
            seq=fixed["seq"],
            total_blocks=10,
            free_blocks=10,
            running=self.running,
            slowdown=self.slowdown,
        )

    def _post(self, address: str, report: Report) -> None:
        self.to.append(address.rpartition("/")[2])
        self.heard.append(report)

    def beat(self) -> InstanceSnapshot:
        self.reports.beat()
        return self.heard[-1].snapshot

    def beat_until(self, now: float) -> InstanceSnapshot:
        """Each second."""
        while self.now < now:
            self.now += 1.0
            self.reports.beat()
        return self.heard[-1].snapshot


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Instance:
    return Instance(monkeypatch, tmp_path)


def test_heartbeat_repeats_the_last_report_and_says_for_how_long_nothing_was_done(instance: Instance) -> None:
    instance.reports.after_step()
    seq = instance.beat().seq
    beat = instance.beat_until(103.0)
    assert (beat.seq, beat.standing_s) == (seq, 3.0), "it sits in a step"
    instance.reports.made_progress()
    instance.now = 104.0
    assert instance.beat().standing_s == 1.0


def test_engine_that_was_frozen_in_a_step_with_all_of_its_process_has_not_hung(instance: Instance) -> None:
    """Else it is killed before the step can end."""
    instance.reports.after_step()
    assert instance.beat_until(103.0).standing_s == 3.0
    instance.now = 253.0
    assert instance.beat().standing_s == 0.0
    assert instance.beat_until(263.0).standing_s == 10.0, "and now it does"


def test_engine_that_rests_has_nothing_to_get_done(instance: Instance) -> None:
    instance.reports.before_sleep()
    instance.now = 500.0
    assert instance.beat().standing_s == 0.0


def test_engine_that_sleeps_although_something_waits_for_it_hangs(instance: Instance) -> None:
    instance.reports.before_sleep()
    instance.now = 110.0
    instance.beat()
    instance.unread = 2
    beat = instance.beat_until(500.0)
    assert (beat.standing_s, beat.unread) == (390.0, 2)


def test_who_has_just_heard_a_report_needs_no_heartbeat(instance: Instance) -> None:
    audience = {"scheduler", "front-0"}
    instance.now = 200.0
    instance.reports.send()
    instance.to.clear()
    instance.now = 200.05
    instance.reports.beat()
    assert instance.to == ["launcher"]
    instance.now = 200.25
    instance.reports.beat()
    assert {*instance.to[1:]} == audience, "the launcher hears less often than the others"


def test_after_a_step_in_which_only_lengths_grew_nothing_is_sent_until_it_is_time(instance: Instance) -> None:
    instance.now, instance.running = 200.0, 1
    instance.reports.after_step()
    sent = len(instance.heard)
    for step in range(1, 13):
        instance.now = 200.0 + step / 32
        instance.reports.after_step()
    times = [report.snapshot.at - 200.0 for report in instance.heard[sent:]]
    assert times == [4 / 32, 8 / 32, 12 / 32]
    instance.now, instance.running = 200.0 + 13 / 32, 2
    instance.reports.after_step()
    assert instance.heard[-1].snapshot.running == 2


def test_in_a_large_cluster_only_news_are_sent_and_heartbeats_tell_the_rest(instance: Instance) -> None:
    instance.reports.set_size(1024)
    assert instance.reports.heartbeat_s == pytest.approx(0.4096)
    instance.now, instance.running = 200.0, 1
    instance.reports.after_step()
    sent = len(instance.heard)
    for _ in range(10):
        instance.now += 0.02
        instance.reports.after_step()
    assert len(instance.heard) == sent, "nothing but growth"
    instance.now, instance.running = 200.23, 2
    instance.reports.after_step()
    assert len(instance.heard) == sent + 1
    instance.now += 0.02
    instance.reports.after_step()
    instance.now += 0.4
    assert instance.beat().seq > instance.heard[sent].snapshot.seq, "the last look, not the last report"


def test_engine_that_hangs_with_what_woke_it_in_its_hand_is_not_at_rest(instance: Instance) -> None:
    instance.reports.before_sleep()
    instance.now = 110.0
    instance.beat()
    instance.reports.begins()
    beat = instance.beat_until(500.0)
    assert (beat.standing_s, beat.unread) == (390.0, 1)
    instance.reports.made_progress()
    instance.now = 501.0
    beat = instance.beat()
    assert (beat.standing_s, beat.unread) == (1.0, 0)


def test_that_it_was_slow_is_told_until_nobody_knows_any_more(instance: Instance) -> None:
    instance.slowdown = 2.0
    instance.reports.made_progress()
    assert not instance.reports.is_outdated, "it works"
    instance.reports.before_sleep()
    assert not instance.reports.is_outdated
    instance.now += FORGOTTEN_S + 0.1
    assert instance.reports.is_outdated
    instance.slowdown = 1.0
    instance.reports.made_progress()
    instance.reports.before_sleep()
    assert instance.heard[-1].snapshot.slowdown == 1.0
    assert not instance.reports.is_outdated
