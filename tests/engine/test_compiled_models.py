"""Models that vLLM compiled on a CPU are found again, and say the same."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from torch._inductor import codecache
from vllm.compilation import caching
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CompilationMode, VllmConfig, set_current_vllm_config

from llumnix.engine.vllm import compiled_models
from llumnix.engine.vllm.instance import worker

assert worker.WorkerExtension is not None  # what a worker's process imports before it makes its model


@support_torch_compile(dynamic_arg_dims={"x": 0})
class Model(torch.nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x)) * 2


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VllmConfig:
    """As the CPU platform sets it for models that are to be compiled."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    made = VllmConfig()
    made.compilation_config.mode = CompilationMode.DYNAMO_TRACE_ONCE
    made.compilation_config.backend = "inductor"
    return made


def make(config: VllmConfig, seed: int) -> Any:
    torch.manual_seed(seed)
    with set_current_vllm_config(config):
        return Model(vllm_config=config)


def says(model: Any) -> list[float]:
    with set_current_vllm_config(model.vllm_config), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [model(torch.ones(count, 8) / count).sum().item() for count in (4, 3, 7)]


def test_second_engine_loads_what_the_first_one_compiled(config: VllmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, other_weights = make(config, 0), make(config, 0), make(config, 1)
    compiled = says(first)
    assert not first.was_aot_compile_fn_loaded_from_disk
    codecache.CppPythonBindingsCodeCache.cache_clear()  # as in a process that has not compiled it
    codecache._precompile_header.cache_clear()
    monkeypatch.setattr("torch._inductor.cpp_builder.run_compile_cmd", no_compiler)
    assert says(second) == compiled
    assert second.was_aot_compile_fn_loaded_from_disk
    assert says(other_weights) == pytest.approx([2 * torch.relu(other_weights.layer(torch.ones(8))).sum().item()] * 3)


def no_compiler(*command: Any, **_: Any) -> None:
    raise AssertionError(f"the compiler was called: {command}")


def test_code_of_another_processor_is_not_loaded(config: VllmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    here = caching.aot_compile_hash_factors(config)
    assert here == caching.aot_compile_hash_factors(config)
    monkeypatch.setattr(compiled_models, "processor", lambda: "x86_64 mmx")
    assert caching.aot_compile_hash_factors(config) != here


def test_processor_is_told_by_what_it_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "cpuinfo"
    monkeypatch.setattr(compiled_models, "_CPUINFO", told)
    names = []
    for text in ("flags\t: sse avx2\n" * 2, "flags : avx2 sse\n", "Features : neon\n", ""):
        told.write_text(text)
        names.append(compiled_models.processor())
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert names[0].endswith("avx2 sse")
