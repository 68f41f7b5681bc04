"""What `llumnix doctor` finds on machines with GPUs of all kinds."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sysconfig
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from llumnix import gpu_findings
from llumnix.cluster import devices, environment, flashinfer
from llumnix.engine.gpus import Gpu, GpuMachine
from llumnix.errors import UsageError
from llumnix.findings import Finding, Mark
from llumnix.flags import parse_serve


def gpu(free_gib: int = 79, for_many: bool = True) -> Gpu:
    return Gpu("NVIDIA H100", "GPU-0", 80 << 30, free_gib << 30, for_many)


def machine(gpus: int) -> GpuMachine:
    made = tuple(Gpu("NVIDIA H100", f"GPU-{index}", 80 << 30, 79 << 30, True) for index in range(gpus))
    return GpuMachine("580.65", (13, 0), made)


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of PyTorch for CUDA 13, and of vLLM."""
    for module in (devices, environment):
        monkeypatch.setattr(module, "runs_on_cpu", lambda: False)
    monkeypatch.setattr(gpu_findings, "_cuda_of_torch", lambda: 13)


def gpus_found(there: GpuMachine | None, words: str = "", **variables: str) -> list[Finding]:
    return gpu_findings._gpus(there, parse_serve(words.split()), variables)


@pytest.mark.usefixtures("cuda_build")
@pytest.mark.parametrize(
    ("there", "flags", "marks", "words"),
    [
        (None, "--instances 1", [Mark.BAD], "--gpus all"),
        (GpuMachine("580.65", (13, 0), (gpu(),)), "--instances 1", [Mark.GOOD, Mark.GOOD], ""),
        (GpuMachine("550.54", (12, 4), (gpu(),)), "--instances 1", [Mark.BAD, Mark.GOOD], "for CUDA 13: update"),
        (GpuMachine("580.65", (13, 0), (gpu(),)), "--instances 2", [Mark.GOOD, Mark.BAD], "--instances-per-gpu 2"),
        (GpuMachine("580.65", (13, 0), (gpu(),)), "--instances-per-gpu 2", [Mark.GOOD, Mark.GOOD], ""),
        (GpuMachine("580.65", (13, 0), ()), "", [Mark.GOOD, Mark.BAD], "needs a GPU, and none is visible"),
        (GpuMachine("580.65", (13, 0), (gpu(free_gib=40),)), "--instances 1", [Mark.GOOD, Mark.BAD], "wants 92%"),
        (
            GpuMachine("580.65", (13, 0), (gpu(free_gib=40),)),
            "--instances 1 --gpu-memory-utilization 0.45",
            [Mark.GOOD, Mark.GOOD],
            "40 of 80 GiB free",
        ),
        (
            GpuMachine("580.65", (13, 0), (gpu(free_gib=60),)),
            "--instances 4 --instances-per-gpu 4 --gpu-memory-utilization 0.2",
            [Mark.GOOD, Mark.BAD],
            "wants 80%",
        ),
        (
            GpuMachine("580.65", (13, 0), (gpu(free_gib=60),)),
            "--instances 2 --instances-per-gpu 2 --gpu-memory-utilization 0.6 --kv-cache-memory-bytes 8G",
            [Mark.GOOD, Mark.GOOD],
            "60 of 80 GiB free",
        ),
        (
            GpuMachine("580.65", (13, 0), (gpu(for_many=False),)),
            "--instances 1",
            [Mark.GOOD, Mark.NOTE],
            "for one process",
        ),
        (
            GpuMachine("580.65", (13, 0), (gpu(for_many=False),)),
            "--instances-per-gpu 2",
            [Mark.GOOD, Mark.BAD],
            "--compute-mode=DEFAULT",
        ),
        (
            GpuMachine("580.65", (13, 0), (replace(gpu(free_gib=1), divided=True),)),
            "--instances 1",
            [Mark.GOOD, Mark.NOTE],
            "nvidia-smi -L",
        ),
        (machine(8), "--instances 2 --tensor-parallel-size 4", [Mark.GOOD] * 9, ""),
        (machine(8), "--instances 3 -tp 4", [Mark.GOOD, Mark.BAD], "use --instances 2"),
        (machine(8), "--instances 3 --launcher ray", [Mark.GOOD], ""),
    ],
)
def test_what_a_machine_with_gpus_lacks(there: GpuMachine | None, flags: str, marks: list[Mark], words: str) -> None:
    findings = gpus_found(there, flags)
    assert [finding.mark for finding in findings] == marks
    assert words in "\n".join(map(str, findings))


@pytest.mark.usefixtures("cuda_build")
def test_gpus_that_nobody_is_to_use_are_not_looked_at() -> None:
    one, busy = (Gpu("NVIDIA H100", name, 80 << 30, free << 30, True) for name, free in (("GPU-0", 79), ("GPU-1", 5)))
    there = GpuMachine("580.65", (13, 0), (one, busy))
    assert [str(each).split(":")[0] for each in gpus_found(there, "--instances 1")[1:]] == ["  ok  GPU 0"]
    (found,) = gpus_found(there, "--instances 1", CUDA_VISIBLE_DEVICES="GPU-1")[1:]
    assert found.mark is Mark.BAD
    assert gpus_found(there, "--instances 1", CUDA_VISIBLE_DEVICES="3")[-1].mark is Mark.BAD
    (parts,) = gpus_found(there, "", CUDA_VISIBLE_DEVICES="MIG-1,MIG-2")[1:]
    assert (parts.mark, parts.what) == (Mark.GOOD, "parts of GPUs that are visible: 2")


@pytest.mark.usefixtures("cuda_build")
def test_driver_is_looked_at_also_before_torch_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_findings, "_cuda_of_torch", lambda: None)
    assert [finding.mark for finding in gpus_found(machine(1), "--instances 1")] == [Mark.GOOD, Mark.GOOD]


@pytest.mark.parametrize(("word", "cuda"), [("'13.0'", 13), ("None", None)])
def test_cuda_that_torch_is_built_for_is_known_where_its_version_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, cuda: int | None
) -> None:
    """That of the package index has none in it."""
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\ncuda: Optional[str] = {word}\nhip: None\n")
    there = ModuleSpec("torch", None, is_package=True)
    there.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: there)
    assert gpu_findings._cuda_of_torch() == cuda


@pytest.mark.usefixtures("cuda_build")
@pytest.mark.parametrize("machine", [machine(gpus) for gpus in range(4)], ids=lambda there: f"{len(there.gpus)} GPUs")
@pytest.mark.parametrize("flags", ["--instances 1", "--instances 2", "--instances 3", "--instances 1 -tp 2"])
def test_too_few_gpus_are_bad_where_serve_refuses_them(machine: GpuMachine, flags: str) -> None:
    is_bad = any(finding.mark is Mark.BAD for finding in gpus_found(machine, flags))
    try:
        devices.check_gpus(parse_serve(flags.split()), machine, {})
    except UsageError:
        assert is_bad
    else:
        assert not is_bad


@pytest.mark.parametrize(
    ("compiler", "headers", "mark", "words"),
    [
        (True, True, Mark.GOOD, "a C compiler, and"),
        (False, True, Mark.BAD, "install gcc"),
        (True, False, Mark.BAD, "install python3-dev"),
    ],
)
def test_what_kernels_are_compiled_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: bool, headers: bool, mark: Mark, words: str
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/gcc" if compiler and name == "gcc" else None)
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    if headers:
        (tmp_path / "Python.h").touch()
    finding = gpu_findings._compiler()
    assert finding.mark is mark
    assert words in str(finding)


@pytest.mark.parametrize(("program", "mark"), [("clang", Mark.GOOD), ("cc", Mark.BAD)])
def test_compiler_that_triton_does_not_look_for_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, mark: Mark
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{program}" if name == program else None)
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    (tmp_path / "Python.h").touch()
    assert gpu_findings._compiler().mark is mark


@pytest.mark.parametrize(
    ("missing", "mark", "words"),
    [
        (set(), Mark.GOOD, "all packages that vLLM names"),
        ({"flashinfer-python"}, Mark.NOTE, "missing: flashinfer-python"),
        (set("abcdefgh"), Mark.NOTE, "missing: a, b, c, d, e, f, …"),
        ({"vllm"}, Mark.NOTE, "does not say"),
    ],
)
def test_packages_of_vllm_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, missing: set[str], mark: Mark, words: str
) -> None:
    wanted = [*"abcdefgh", 'flashinfer-python==0.7; platform_system == "Linux"', 'ray; extra == "bench"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)

    def distribution(name: str) -> str:
        if name in missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return name

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    finding = gpu_findings._what_vllm_needs()
    assert finding.mark is mark
    assert words in str(finding)


@pytest.mark.usefixtures("cuda_build")
@pytest.mark.parametrize(
    ("lacks", "sampler", "mark", "words"),
    [
        (None, None, Mark.GOOD, "FlashInfer's kernels"),
        ("FlashInfer finds no nvcc", None, Mark.GOOD, "vLLM's own kernels draw tokens: FlashInfer finds no nvcc"),
        ("FlashInfer finds no nvcc", "0", Mark.GOOD, "vLLM's own kernels"),
        ("FlashInfer finds no nvcc", "1", Mark.BAD, "Take VLLM_USE_FLASHINFER_SAMPLER out of the environment"),
    ],
)
def test_kernels_that_draw_tokens(
    monkeypatch: pytest.MonkeyPatch, lacks: str | None, sampler: str | None, mark: Mark, words: str
) -> None:
    monkeypatch.setattr(flashinfer, "why_not", lambda _: lacks)
    monkeypatch.delenv(flashinfer.SAMPLER, raising=False)
    if sampler is not None:
        monkeypatch.setenv(flashinfer.SAMPLER, sampler)
    finding = gpu_findings._sampler(parse_serve([]))
    assert finding.mark is mark
    assert words in str(finding)
