"""Gauges of instances in the text that Prometheus reads."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm")

import prometheus_client
from vllm.entrypoints.serve.instrumentator import metrics

from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.server.gauges import in_registry
from llumnix.types import InstanceId, InstanceState


def load(instance: str, **facts: object) -> InstanceSnapshot:
    usual = {"id": InstanceId(instance), "at": 0.0, "seq": 1, "total_blocks": 100, "free_blocks": 60, "running": 3}
    return InstanceSnapshot(**(usual | facts))  # type: ignore[arg-type]


def lines(registry: prometheus_client.CollectorRegistry, name: str) -> list[str]:
    text = prometheus_client.generate_latest(registry).decode()
    return [line for line in text.splitlines() if line.startswith(f"{name}{{")]


@pytest.mark.parametrize("front_ends", [1, 2])
def test_gauges_are_of_those_who_are_there(front_ends: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.v1.metrics.prometheus.REGISTRY", prometheus_client.CollectorRegistry())
    if front_ends > 1:
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    loads = {"i0": load("i0"), "i1": load("i1", state=InstanceState.DRAINING)}
    with in_registry(lambda: loads):
        registry = metrics.get_prometheus_registry()
    assert lines(registry, "llumnix_freeness") == ['llumnix_freeness{instance_id="i0"} 20.0']
    assert len(lines(registry, "llumnix_running")) == 2
    del loads["i0"]
    assert lines(registry, "llumnix_freeness") == []
    assert lines(registry, "llumnix_running") == ['llumnix_running{instance_id="i1"} 3.0']
