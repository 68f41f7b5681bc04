"""With whose kernels engines draw tokens where FlashInfer's cannot be compiled."""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from llumnix.cluster import environment, flashinfer
from llumnix.cluster.environment import child_environment, environment_abroad, node_environment
from llumnix.flags import parse_serve

Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """These packages are there, and no CUDA toolkit where one usually is."""
    monkeypatch.setattr(flashinfer, "_TOOLKIT", "/no/such/folder")
    monkeypatch.setattr(environment, "runs_on_cpu", lambda: False)

    def install(*packages: str) -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: ModuleSpec(name, None) if name in packages else None
        )

    return install


def programs(folder: Path, *names: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch(0o755)
    return str(folder)


def test_engines_draw_by_themselves_where_there_is_no_flashinfer(install: Install) -> None:
    install()
    assert child_environment(parse_serve([]), {})[flashinfer.SAMPLER] == "0"
    install("flashinfer")
    assert child_environment(parse_serve([]), {})[flashinfer.SAMPLER] == "0", "and none of what compiles its kernels"


def test_who_says_otherwise_has_it_so(install: Install) -> None:
    install("flashinfer")
    assert child_environment(parse_serve([]), {flashinfer.SAMPLER: "1"})[flashinfer.SAMPLER] == "1"


def test_cpus_are_told_nothing(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "runs_on_cpu", lambda: True)
    install()
    assert flashinfer.SAMPLER not in child_environment(parse_serve([]), {})


def test_compiled_kernels_need_no_compiler(install: Install) -> None:
    install("flashinfer", "flashinfer_jit_cache")
    assert flashinfer.why_not({"PATH": ""}) is None
    assert flashinfer.SAMPLER not in child_environment(parse_serve([]), {"PATH": ""})


def test_what_compiles_kernels_is_looked_for_where_flashinfer_does(install: Install, tmp_path: Path) -> None:
    install("flashinfer")
    rest = programs(tmp_path / "rest", "ninja", "c++", "g++-12")
    toolkit = tmp_path / "cuda"
    bin_ = programs(toolkit / "bin", "nvcc")
    for fits in (
        {"PATH": f"{rest}:{bin_}"},
        {"PATH": rest, "CUDA_HOME": str(toolkit)},
        {"PATH": rest, "CUDA_PATH": str(toolkit)},
        {"PATH": rest, "FLASHINFER_NVCC": f"{bin_}/nvcc"},
        {"PATH": rest, "CUDA_HOME": str(toolkit), "CXX": "g++-12 -m64"},
    ):
        assert flashinfer.why_not(fits) is None
    for lacks, word in (
        ({"PATH": rest}, "nvcc"),
        ({"PATH": f"{rest}:{bin_}", "CUDA_HOME": "/no/such/folder"}, "nvcc"),
        ({"PATH": bin_}, "c++"),
        ({"PATH": f"{bin_}:{rest}", "CXX": "icpc"}, "icpc"),
        ({"PATH": f"{bin_}:{programs(tmp_path / 'c', 'c++')}"}, "ninja"),
    ):
        assert f"finds no {word}" in (flashinfer.why_not(lacks) or "")


def test_toolkit_in_its_usual_place_is_found(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("flashinfer")
    path = programs(tmp_path / "rest", "ninja", "c++")
    programs(tmp_path / "cuda" / "bin", "nvcc")
    monkeypatch.setattr(flashinfer, "_TOOLKIT", str(tmp_path / "cuda"))
    assert flashinfer.why_not({"PATH": path}) is None


def test_programs_of_packages_are_found_though_nobody_has_activated_their_environment() -> None:
    own = sysconfig.get_path("scripts")
    for made in (child_environment(parse_serve([]), {"PATH": "/usr/bin"}), node_environment({"PATH": "/usr/bin"}, {})):
        assert made["PATH"] == f"/usr/bin:{own}"
    assert child_environment(parse_serve([]), {"PATH": f"{own}:/bin"})["PATH"] == f"{own}:/bin"
    assert child_environment(parse_serve([]), {})["PATH"] == f"{os.defpath}:{own}"


def test_each_machine_looks_for_itself_unless_one_that_lacks_it_has_said_so(install: Install) -> None:
    install("flashinfer")
    assert node_environment({}, {})[flashinfer.SAMPLER] == "0"
    sent = environment_abroad(child_environment(parse_serve([]), {}))
    assert sent[flashinfer.SAMPLER] == "0", "all instances draw alike"
    install("flashinfer", "flashinfer_jit_cache")
    assert flashinfer.SAMPLER not in node_environment({}, {})
    assert node_environment({}, sent)[flashinfer.SAMPLER] == "0"
