"""Weights that no file holds (benchmarks/_seeded): the same everywhere, and as large as a model's that attends."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("vllm")

import torch
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import get_model_loader

SEEDED = Path(__file__).parents[2] / "benchmarks" / "_seeded" / "seeded_weights.py"


def loaded() -> dict[str, torch.Tensor]:
    spec = importlib.util.spec_from_file_location("seeded_weights", SEEDED)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.register()
    layers = {
        "qkv_proj": torch.nn.Linear(256, 512),
        "norm": torch.nn.LayerNorm(256),
        "lm_head": torch.nn.Linear(256, 512),
    }
    model = torch.nn.ModuleDict(layers)
    get_model_loader(LoadConfig(load_format="seeded")).load_weights(model, None)  # type: ignore[arg-type]
    return dict(model.named_parameters())


def test_every_instance_has_the_same() -> None:
    one, other = loaded(), loaded()
    assert all(torch.equal(parameter, other[name]) for name, parameter in one.items())
    assert not torch.equal(one["qkv_proj.weight"], one["lm_head.weight"] * 1.6 / 5.0), "each is drawn for itself"


def test_they_are_large_enough_for_what_stands_far_back_to_count() -> None:
    weights = loaded()
    assert weights["qkv_proj.weight"].std().item() == pytest.approx(0.1, rel=0.05)
    assert weights["lm_head.weight"].std().item() == pytest.approx(5 / 16, rel=0.05)
    assert torch.equal(weights["norm.weight"], torch.ones(256))
    assert torch.equal(weights["qkv_proj.bias"], torch.zeros(512))
