"""Every family of the table is a checkpoint that vLLM reads, and is asked what is known."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import migration_downtime
from families.checkpoints import RECIPES, ensure
from families.table import CANNOT_RUN, FAMILIES, TORCHVISION, engine_environment, engine_flags
from frame.kinds import ALL
from transformers.utils import import_utils
from vllm.distributed.device_communicators.base_device_communicator import DeviceCommunicatorBase
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models import registry
from vllm.utils.argparse_utils import FlexibleArgumentParser


@pytest.fixture(scope="module", autouse=True)
def made() -> None:
    """All in one go: the import of PyTorch takes longer than the models."""
    ensure(sorted({recipe for family in FAMILIES.values() for recipe in family.recipes}))


@pytest.fixture(autouse=True)
def looked_at_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM would look at each model's class in a process of its own, for seconds each."""

    def inspect(model: Any) -> Any:
        return registry._ModelInfo.from_model_cls(model.load_model_cls())

    monkeypatch.setattr(registry._LazyRegisteredModel, "inspect_model_cls", inspect)


@pytest.fixture(autouse=True)
def torchvision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models that look at images import it; where it is not installed, the stand-in of the benchmarks does."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    monkeypatch.syspath_prepend(str(TORCHVISION))
    _forget_torchvision()
    yield
    _forget_torchvision()


def _forget_torchvision() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    import_utils.is_torchvision_available.cache_clear()
    import_utils.is_torchvision_v2_available.cache_clear()


def _engine_args(name: str) -> EngineArgs:
    model, *flags = engine_flags(name)
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())  # type: ignore[no-untyped-call]
    arguments, of_the_server = parser.parse_known_args(["--model", model, *flags])  # type: ignore[no-untyped-call]
    assert of_the_server[:1] in ([], ["--lora-modules"])
    made: EngineArgs = EngineArgs.from_cli_args(arguments)
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_vllm_reads_the_checkpoint_and_the_flags(name: str) -> None:
    family = FAMILIES[name]
    config = _engine_args(name).create_engine_config()
    assert config.model_config.architectures == [RECIPES[family.recipe].model]
    assert str(config.model_config.dtype) == f"torch.{family.dtype}"
    assert (config.speculative_config is not None) == bool(family.drafts)
    assert config.model_config.is_multimodal_model == bool(RECIPES[family.recipe].special)


@pytest.mark.parametrize("name", FAMILIES)
def test_is_asked_what_the_frame_knows(name: str) -> None:
    assert set(FAMILIES[name].kinds) <= set(ALL)


def test_every_recipe_is_of_a_family() -> None:
    assert {recipe for family in FAMILIES.values() for recipe in family.recipes} == set(RECIPES)


def test_what_the_cpu_build_cannot_do_is_a_sentence() -> None:
    for name, gap in ({name: family.gap for name, family in FAMILIES.items() if family.gap} | CANNOT_RUN).items():
        assert "vLLM" in gap or "Triton" in gap or "package" in gap, name


def test_ranks_of_experts_still_cannot_exchange_tokens_on_cpus() -> None:
    """The day they can, docs/change/data-parallel.md has something to be tried with."""
    assert CpuCommunicator.all_gatherv is DeviceCommunicatorBase.all_gatherv
    assert CpuCommunicator.reduce_scatterv is DeviceCommunicatorBase.reduce_scatterv


def test_servers_whose_downtime_is_measured_have_what_their_family_wants_in_its_environment() -> None:
    options = argparse.Namespace(lengths=[256], model=None, family="pipeline", step_ms=0.0)
    before, wanted = dict(os.environ), engine_environment("pipeline")
    with ExitStack() as stack:
        flags = migration_downtime._engine_flags(options, stack)
        assert flags[:-2] == engine_flags("pipeline")
        assert "PYTHONPATH" in wanted
        assert wanted.items() <= os.environ.items()
    assert dict(os.environ) == before


def test_steps_of_a_family_are_paced() -> None:
    options = argparse.Namespace(lengths=[256], model=None, family="granite4", step_ms=20.0)
    with ExitStack() as stack:
        model = Path(migration_downtime._engine_flags(options, stack)[0])
        config = json.loads((model / "config.json").read_text())
        assert config["paced_step_ms"] == 20.0
        assert config["architectures"] == ["GraniteMoeHybridForCausalLM"]
        assert any((Path(folder) / "paced_model.py").exists() for folder in os.environ["PYTHONPATH"].split(os.pathsep))
    assert not model.exists()
