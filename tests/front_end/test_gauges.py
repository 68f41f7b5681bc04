"""Our metrics in the text that Prometheus reads."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import prometheus_client
from prometheus_client.parser import text_string_to_metric_families

from llumnix.control.front_end_events import ReplayAt
from llumnix.control.orders import MoveCause, StayCause
from llumnix.control.scaling import ScalingMode
from llumnix.engine.vllm.front_end import stream_log
from llumnix.engine.vllm.front_end.exposition import exposition
from llumnix.engine.vllm.front_end.gauges import InstanceSeen, ServerSeen
from llumnix.engine.vllm.front_end.metrics import Metrics
from llumnix.journal.journal import Journal
from llumnix.policy.dispatch import DispatchReason, Judged
from llumnix.policy.snapshot import InstanceSnapshot, StepCost
from llumnix.types import InstanceId, InstanceState, RequestId, Role
from llumnix.wire.base import InstanceInfo
from llumnix.wire.to_front_end import ScalingStatus
from move_outcomes import outcome

OBSERVING = Path(__file__).parent.parent.parent / "docs" / "use" / "observing.md"


def seen(instance: str, slot: int = 0, **facts: object) -> InstanceSeen:
    usual: dict[str, Any] = {
        "id": InstanceId(instance),
        "at": 0.0,
        "seq": 1,
        "total_blocks": 100,
        "free_blocks": 60,
        "running": 3,
    }
    usual["step_cost"] = StepCost(fixed_ms=20.0, prefill_token_us=100.0, request_us=200.0, context_token_us=0.0)
    load = InstanceSnapshot(**(usual | {"dispatches_seen": (3, 4)} | facts))
    info = InstanceInfo(id=load.id, index=slot, slot=slot, pid=1, node="here", control="", data="")
    return InstanceSeen(info=info, load=load, report_age_s=0.25)


SCALING = ScalingStatus(
    mode=ScalingMode.ON,
    min_instances=1,
    max_instances=4,
    serving=2,
    draining=0,
    starting=0,
    failing=1,
    now="",
    last=None,
    starts=5,
    drains=3,
    instance_seconds=12.5,
    watched_s=6.0,
)


@pytest.fixture(params=[1, 2], ids=["one front end", "two front ends"])
def _metrics(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.v1.metrics.prometheus.REGISTRY", prometheus_client.CollectorRegistry())
    if request.param > 1:
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))


def lines(server: ServerSeen, name: str) -> list[str]:
    return [line for line in exposition(server).decode().splitlines() if re.match(rf"{name}[{{ ]", line)]


@pytest.mark.usefixtures("_metrics")
def test_they_are_of_those_who_are_there() -> None:
    both = ServerSeen(instances=(seen("i0"), seen("i1", state=InstanceState.DRAINING)))
    assert lines(both, "llumnix_freeness") == ['llumnix_freeness{instance_id="i0"} 20.0'], "a drain is no false zero"
    assert len(lines(both, "llumnix_running")) == 2
    assert lines(both, "llumnix_dispatches_total")[0] == 'llumnix_dispatches_total{instance_id="i0"} 7.0', (
        "of both front ends"
    )
    second = ServerSeen(instances=both.instances[1:])
    assert lines(second, "llumnix_freeness") == []
    assert lines(second, "llumnix_running") == ['llumnix_running{instance_id="i1"} 3.0']
    assert len(lines(second, "llumnix_dispatches_total")) == 1


VALUES = {
    "llumnix_freeness": 60 / 3,
    "llumnix_free_blocks": 60,
    "llumnix_total_blocks": 100,
    "llumnix_waiting": 0,
    "llumnix_running": 3,
    "llumnix_token_seconds": 2.5 * (0.020 + 3 * 0.0002),
    "llumnix_slowdown": 2.5,
    "llumnix_report_age_seconds": 0.25,
    "llumnix_preemptions_total": 4,
    "llumnix_preemptions_avoided_total": 5,
    "llumnix_recompute_tokens_saved_total": 600,
    "llumnix_late_messages_total": 7,
    "llumnix_dispatches_total": 3 + 4,
    "llumnix_engine_info": 1,
    "llumnix_role": 1,
}
"""Of an instance, by name."""


def test_each_has_its_value() -> None:
    counts = {"preemptions": 4, "preemptions_avoided": 5, "recompute_tokens_saved": 600, "late_messages": 7}
    told = {**counts, "slowdown": 2.5}
    server = ServerSeen(instances=(seen("i0", slot=2, role=Role.DECODE, **told),))
    families = text_string_to_metric_families(exposition(server).decode())
    samples = [sample for family in families for sample in family.samples if "instance_id" in sample.labels]
    assert {sample.name: sample.value for sample in samples} == pytest.approx(VALUES)
    assert [sample.labels["role"] for sample in samples if sample.name == "llumnix_role"] == ["decode"]


def test_what_came_too_late_for_the_scheduler_is_counted() -> None:
    server = ServerSeen(scheduler_late_messages=3)
    assert lines(server, "llumnix_scheduler_late_messages_total") == ["llumnix_scheduler_late_messages_total 3.0"]


def test_who_waits_is_counted_and_what_no_step_tells_is_not_there() -> None:
    server = ServerSeen(instances=(seen("i0", waiting=2, step_cost=None),))
    assert lines(server, "llumnix_waiting") == ['llumnix_waiting{instance_id="i0"} 2.0']
    assert lines(server, "llumnix_token_seconds") == []


@pytest.mark.usefixtures("_metrics")
def test_a_thousand_replacements_leave_no_more_lines_than_one() -> None:
    one, last = (ServerSeen(instances=(seen(name),)) for name in ("i0", "i1000"))
    before = len(exposition(one).splitlines())
    for number in range(1000):
        exposition(ServerSeen(instances=(seen(f"i{number}"),)))
    assert len(exposition(last).splitlines()) == before


@pytest.mark.usefixtures("_metrics")
def test_what_grows_is_a_counter_and_nothing_has_a_label_of_prometheus_itself() -> None:
    server = ServerSeen(instances=(seen("i0", slot=2),), scaling=SCALING)
    families = {each.name: each for each in text_string_to_metric_families(exposition(server).decode())}
    of_instances = ("preemptions", "preemptions_avoided", "recompute_tokens_saved", "dispatches", "late_messages")
    for grows in (*of_instances, "instance_seconds", "scheduler_late_messages"):
        assert families[f"llumnix_{grows}"].type == "counter"
    assert families["llumnix_scaling_decisions"].type == "counter"
    for family in families.values():
        for sample in family.samples:
            assert not sample.labels.keys() & {"instance", "job"}, family.name
    (engine,) = families["llumnix_engine_info"].samples
    assert engine.labels == {"instance_id": "i0", "engine": "2", "node": "here", "state": "running"}


def test_what_only_the_scheduler_knows_is_left_out_while_it_is_silent() -> None:
    instances = (seen("i0"), seen("i1", state=InstanceState.DRAINING))
    up = ServerSeen(instances=instances, starting=3, scaling=SCALING)
    assert [line.split(" ")[1] for line in lines(up, "llumnix_instances")] == ["1.0", "1.0", "3.0", "1.0"]
    assert lines(up, "llumnix_scheduler_up") == ["llumnix_scheduler_up 1.0"]
    silent = ServerSeen(instances=instances, starting=3, scaling=SCALING, scheduler_up=False)
    assert [line for line in lines(silent, "llumnix_instances") if "failing" in line] == []
    assert len(lines(silent, "llumnix_instances")) == 3
    assert lines(silent, "llumnix_scheduler_up") == ["llumnix_scheduler_up 0.0"]
    assert lines(silent, "llumnix_instance_seconds_total") == ["llumnix_instance_seconds_total 12.5"]


@pytest.fixture
def own() -> tuple[Metrics, prometheus_client.CollectorRegistry]:
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # as a front end does
    registry = prometheus_client.CollectorRegistry()
    return Metrics(registry), registry


Own = tuple[Metrics, prometheus_client.CollectorRegistry]


def test_moves_are_counted_by_who_asked_and_why_some_stayed(own: Own) -> None:
    metrics, registry = own
    metrics.migration(outcome("i0", "i1"), 0.004)
    metrics.migration(outcome("i0", "i1", why_not="refused: no room", stayed=StayCause.REFUSED), None)
    metrics.migration(outcome("i0", "i1", why_not="refused: 3 in already", stayed=StayCause.REFUSED), None)

    def count(**labels: str) -> float | None:
        return registry.get_sample_value("llumnix_migrations_total", {"cause": "balance"} | labels)

    assert count(outcome="moved", stayed_why="") == 1
    assert count(outcome="stayed", stayed_why="refused") == 2, "one series, whatever the sentence says"
    assert registry.get_sample_value("llumnix_migration_downtime_seconds_count") == 1


def test_replays_are_counted_by_whether_an_instance_was_lost_from_zero_on(own: Own) -> None:
    metrics, registry = own

    def counts() -> list[float | None]:
        return [registry.get_sample_value("llumnix_replays_total", {"cause": why}) for why in ("lost", "asked_for")]

    assert counts() == [0, 0]
    reason = DispatchReason("freeness", (Judged(InstanceId("i0"), 1.0),), 1)
    for asked_for in (True, True, False):
        metrics.replay(ReplayAt(RequestId("r"), RequestId("r~1"), InstanceId("i0"), 3, "why", reason, asked_for))
    assert counts() == [1, 2]


def test_request_that_cannot_go_on_is_counted(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, registry = own
    monkeypatch.setattr(stream_log, "Metrics", lambda: metrics)
    log = stream_log.StreamLog(Journal("f0"))
    for _ in range(2):
        log.failed(SimpleNamespace(), "its instance was lost")  # type: ignore[arg-type]
    assert registry.get_sample_value("llumnix_given_up_requests_total") == 2


def test_strangers_and_what_came_late_or_could_not_be_sent_are_counted_once_each(own: Own) -> None:
    metrics, registry = own
    for refused, malformed, unsent, late in ((0, 0, 0, 0), (2, 0, 0, 7), (2, 1, 3, 7), (5, 1, 3, 9)):
        metrics.stand_at(refused=refused, malformed=malformed, unsent=unsent, late_outputs=late)
    names = ("refused_connections", "malformed_messages", "unsent_messages", "late_outputs")
    assert [registry.get_sample_value(f"llumnix_{name}_total") for name in names] == [5, 1, 3, 9]


def test_each_is_explained_with_its_labels_and_nothing_else_is(own: Own) -> None:
    metrics, registry = own
    metrics.migration(outcome("i0", "i1"), 0.004)
    server = ServerSeen(instances=(seen("i0"),), scaling=SCALING)
    text = exposition(server).decode() + prometheus_client.generate_latest(registry).decode()
    told: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("llumnix_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            told[name] = {label for sample in family.samples for label in sample.labels if label != "le"}
    explained: dict[str, set[str]] = {}
    for names, labels in re.findall(r"^\| (`llumnix_[^|]+) \|([^|]*)\|", OBSERVING.read_text(), re.MULTILINE):
        explained |= {name: set(labels.replace(",", " ").split()) for name in re.findall(r"`([^`]+)`", names)}
    assert explained == told


def test_causes_are_explained() -> None:
    words = re.findall(r"`([a-z_]+)`", OBSERVING.read_text())
    assert {*map(str, MoveCause), *map(str, StayCause)} - {*words} == {"not_started", "ended"}, (
        "these two no client sees"
    )
