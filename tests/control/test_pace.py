"""How often an instance reports, by the size of the cluster."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.config import ClusterConfig
from llumnix.control.pace import ReportPace, SizeTold, pace_of
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, InstanceState, Role

CONFIG = ClusterConfig()
INTERVAL_S = 1024 / CONFIG.max_reports_per_s


def load(**facts: object) -> InstanceSnapshot:
    usual = {"id": InstanceId("i0"), "at": 0.0, "seq": 1, "total_blocks": 1000, "free_blocks": 500, "running": 5}
    return InstanceSnapshot(**{**usual, **facts})  # type: ignore[arg-type]


USUAL = load()


def paced() -> ReportPace:
    """One that has just spent all that it may send."""
    pace = ReportPace(CONFIG, 1024)
    assert pace.sends(0.0, USUAL)
    pace._saved = 0.0
    return pace


@pytest.mark.parametrize(
    ("instances", "report_s", "heartbeat_s"),
    [(1, 0.02, 0.2), (64, 0.02, 0.2), (100, 0.02, 0.2), (512, 0.1024, 0.2048), (1024, 0.2048, 0.4096),
     (4096, 0.8192, 1.6384), (20000, 4.0, 2.5)],
)  # fmt: skip
def test_pace_by_size(instances: int, report_s: float, heartbeat_s: float) -> None:
    pace = pace_of(CONFIG, instances)
    assert (pace.report_s, pace.heartbeat_s) == (report_s, heartbeat_s)


def test_heartbeats_are_never_so_rare_that_a_lost_one_kills() -> None:
    config = ClusterConfig(instance_timeout_s=1.0, heartbeat_interval_s=0.1)
    assert pace_of(config, 4096).heartbeat_s == 0.25


def test_small_cluster_reports_whatever_it_sees_if_it_looks_only_when_something_has_changed() -> None:
    pace = ReportPace(CONFIG, 16)
    assert all(pace.sends(0.02 * look, USUAL) for look in range(1000))


def after_each_step() -> ReportPace:
    """One of a small cluster that has just sent a report."""
    pace = ReportPace(CONFIG, 16, quiet_s=0.125)
    assert pace.sends(0.0, USUAL)
    return pace


def test_where_only_lengths_grow_a_look_goes_out_now_and_then() -> None:
    pace = after_each_step()
    looks = range(1, 100)
    sent = [look for look in looks if pace.sends(look / 64, load(context_tokens=look, made_tokens=look))]
    assert sent == [8 * n for n in range(1, 13)]


@pytest.mark.parametrize(
    "facts",
    [
        {"running": 6},
        {"waiting": 1},
        {"ended": 1},
        {"dispatches_seen": (1,)},
        {"prefill_tokens": 100},
        {"preemptions": 1},
        {"short_blocks": 1},
        {"to_decode": 1},
        {"slowdown": 2.0},
        {"incoming": 1},
        {"outgoing": 1},
        {"role": Role.PREFILL},
        {"state": InstanceState.DRAINING},
        {"free_blocks": 484},
        {"free_blocks": 516},
    ],
)
def test_what_a_decision_may_depend_on_is_told_after_the_step(facts: dict[str, Any]) -> None:
    pace = after_each_step()
    assert pace.sends(0.02, load(**facts))
    assert pace.sends(0.04, load(**facts)) == (not {"short_blocks", "to_decode"}.isdisjoint(facts))


def test_shortage_and_requests_that_are_to_leave_are_told_again_until_it_is_over() -> None:
    pace = after_each_step()
    for facts in ({"short_blocks": 3}, {"to_decode": 2}):
        assert all(pace.sends(0.02, load(**facts)) for _ in range(3))
        assert [pace.sends(0.02, USUAL) for _ in range(2)] == [True, False], "that it is over, too"


def test_growth_alone_waits_for_the_heartbeat() -> None:
    pace = paced()
    looks = [0.02 * look for look in range(1, 200)]
    sent = [at for at in looks if pace.sends(at, load(free_blocks=500 - int(50 * at)))]
    assert len(sent) == pytest.approx(looks[-1] / (2 * INTERVAL_S), abs=1)


def test_request_that_came_or_went_is_told_as_soon_as_there_is_a_report_for_it() -> None:
    pace = paced()
    assert not pace.sends(INTERVAL_S * 0.9, load(running=6))
    assert pace.next_s(load(running=6)) == pytest.approx(INTERVAL_S)
    assert pace.next_s(USUAL) == pytest.approx(2 * INTERVAL_S)
    assert pace.sends(INTERVAL_S, load(running=6))


def test_what_was_saved_goes_at_once_when_much_happens() -> None:
    pace = paced()
    sent = sum(pace.sends(10.0 + 0.02 * look, load(running=6 + look)) for look in range(5))
    assert sent == 3


@pytest.mark.parametrize(
    "facts",
    [
        {"state": InstanceState.DRAINING},
        {"drain_keep": True},
        {"asked_to_end": True},
        {"preemptions": 1},
        {"short_blocks": 2},
        {"waiting": 1},
        {"running": 0},
    ],
)
def test_urgent_news_goes_out_on_credit(facts: dict[str, object]) -> None:
    pace = paced()
    assert pace.sends(0.02, load(**facts))


def test_urgency_that_goes_on_is_told_once() -> None:
    pace = paced()
    assert pace.sends(0.02, load(short_blocks=5))
    assert not pace.sends(0.04, load(short_blocks=9))


def test_heartbeat_that_said_it_all_stands_for_a_report() -> None:
    pace = paced()
    pace.beats(0.3)
    assert not pace.sends(2 * INTERVAL_S, USUAL)
    assert pace.sends(0.3 + 2 * INTERVAL_S, USUAL)


states = st.builds(
    load,
    running=st.integers(0, 3),
    waiting=st.integers(0, 2),
    short_blocks=st.integers(0, 2),
    preemptions=st.integers(0, 3),
)


@given(st.lists(st.tuples(st.floats(0.0, 0.5), states), min_size=1, max_size=300), st.integers(101, 4096))
def test_listeners_hear_no_more_than_their_budget_and_some_in_reserve(
    looks: list[tuple[float, InstanceSnapshot]], instances: int
) -> None:
    pace = ReportPace(CONFIG, instances)
    at, sent = 0.0, 0
    for pause_s, seen in looks:
        at += pause_s
        sent += pace.sends(at, seen)
    beats = at / pace.pace.heartbeat_s if pace.pace.heartbeat_s < pace.pace.report_s else 0
    assert sent <= at / pace.pace.report_s + beats + 7


def test_instances_are_told_when_their_number_has_changed_much() -> None:
    size = SizeTold(configured=2)
    assert not size.changes(2)
    assert not size.newcomers_ask
    assert size.changes(3)
    assert size.newcomers_ask
    told = [count for count in range(3, 1025) if size.changes(count)]
    assert len(told) < 30
    assert size.instances > 1024 / 1.25 - 1
    assert not size.changes(0)
