"""Which of the visible GPUs an instance sees."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from llumnix.config import ClusterConfig
from llumnix.engine import gpus
from llumnix.engine.gpus import Gpu, GpuMachine
from llumnix.engine.vllm import boot
from llumnix.errors import UsageError


def seen(
    monkeypatch: pytest.MonkeyPatch,
    slot: int,
    workers: int = 1,
    per_gpu: int = 1,
    visible: str = "",
    nvml: bool = True,
) -> str:
    made = tuple(Gpu("NVIDIA H100", f"GPU-{index}", 1, 1, True) for index in range(4))
    monkeypatch.setattr(gpus, "installed", lambda: GpuMachine("580.65", (13, 0), made) if nvml else None)
    monkeypatch.setattr(boot, "_count_visible", lambda: 4)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    else:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    config: Any = SimpleNamespace(
        device_config=SimpleNamespace(device_type="cuda"), parallel_config=SimpleNamespace(world_size=workers)
    )
    spec: Any = SimpleNamespace(slot=slot, device_slot=slot, cluster=ClusterConfig(instances_per_gpu=per_gpu))
    boot._give_devices(config, spec)
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_each_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [seen(monkeypatch, slot) for slot in range(4)] == ["0", "1", "2", "3"]
    assert [seen(monkeypatch, slot, workers=2) for slot in range(2)] == ["0,1", "2,3"]
    assert [seen(monkeypatch, slot, visible="MIG-a,MIG-b") for slot in range(2)] == ["MIG-a", "MIG-b"]


def test_some_share(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [seen(monkeypatch, slot, per_gpu=2) for slot in range(4)] == ["0", "0", "1", "1"]
    assert [seen(monkeypatch, slot, workers=2, per_gpu=2) for slot in range(3)] == ["0,1", "0,1", "2,3"]


def test_one_more_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="slot 4 needs 1 GPUs, but only 4 are visible"):
        seen(monkeypatch, 4)


def test_those_that_are_named_are_given_out_where_nothing_counts_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [seen(monkeypatch, slot, visible="2,3", nvml=False) for slot in range(2)] == ["2", "3"]
    assert [seen(monkeypatch, slot, nvml=False) for slot in range(4)] == ["0", "1", "2", "3"]
