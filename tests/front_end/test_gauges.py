"""Metrics of instances in the text that Prometheus reads."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm")

import prometheus_client

from llumnix.engine.vllm.front_end.gauges import exposition
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, InstanceState


def load(instance: str, **facts: object) -> InstanceSnapshot:
    usual = {"id": InstanceId(instance), "at": 0.0, "seq": 1, "total_blocks": 100, "free_blocks": 60, "running": 3}
    return InstanceSnapshot(**(usual | {"dispatches_seen": (3, 4)} | facts))  # type: ignore[arg-type]


@pytest.fixture(params=[1, 2], ids=["one front end", "two front ends"])
def _metrics(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.v1.metrics.prometheus.REGISTRY", prometheus_client.CollectorRegistry())
    if request.param > 1:
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))


@pytest.mark.usefixtures("_metrics")
def test_they_are_of_those_who_are_there() -> None:
    loads = {"i0": load("i0"), "i1": load("i1", state=InstanceState.DRAINING)}

    def lines(name: str) -> list[str]:
        return [line for line in exposition(lambda: loads).decode().splitlines() if line.startswith(f"{name}{{")]

    assert lines("llumnix_freeness") == ['llumnix_freeness{instance_id="i0"} 20.0']
    assert len(lines("llumnix_running")) == 2
    assert lines("llumnix_dispatches_total")[0] == 'llumnix_dispatches_total{instance_id="i0"} 7.0', (
        "of both front ends"
    )
    del loads["i0"]
    assert lines("llumnix_freeness") == []
    assert lines("llumnix_running") == ['llumnix_running{instance_id="i1"} 3.0']
    assert len(lines("llumnix_dispatches_total")) == 1


@pytest.mark.usefixtures("_metrics")
def test_a_thousand_replacements_leave_no_more_lines_than_one() -> None:
    one, last = ({name: load(name)} for name in ("i0", "i1000"))
    before = len(exposition(lambda: one).splitlines())
    for number in range(1000):
        exposition(lambda number=number: {f"i{number}": load(f"i{number}")})  # type: ignore[misc]
    assert len(exposition(lambda: last).splitlines()) == before


@pytest.mark.usefixtures("_metrics")
def test_they_stand_in_the_order_in_which_people_count() -> None:
    loads: dict[str, InstanceSnapshot] = {name: load(name) for name in ("i10", "i2")}
    lines = [line for line in exposition(lambda: loads).decode().splitlines() if line.startswith("llumnix_running{")]
    assert [line.split('"')[1] for line in lines] == ["i2", "i10"]
