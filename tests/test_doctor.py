"""What `llumnix doctor` finds on machines of all kinds."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import sysconfig
from pathlib import Path

import pytest

from llumnix import doctor
from llumnix.cli import main
from llumnix.cluster import environment, preflight
from llumnix.doctor import Finding, Mark
from llumnix.engine.gpus import Gpu, GpuMachine
from llumnix.errors import UsageError
from llumnix.flags import parse_serve


def found(what: str, findings: list[Finding]) -> Finding:
    (finding,) = [finding for finding in findings if what in finding.what]
    return finding


@pytest.fixture(params=["cpu", "gpu"])
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(doctor, "runs_on_cpu", lambda: request.param == "cpu")
    kind: str = request.param
    return kind


@pytest.mark.parametrize("setting", ["1\n", "0\n", None])
def test_kernel_that_shares_cores_among_sessions(build: str, setting: str | None, tmp_path: Path) -> None:
    autogroup = tmp_path / "sched_autogroup_enabled"
    if setting is not None:
        autogroup.write_text(setting)
    finding = doctor._sessions(autogroup)
    assert finding.mark is (Mark.NOTE if (setting, build) == ("1\n", "cpu") else Mark.GOOD)


def gpu(free_gib: int = 79, for_many: bool = True) -> Gpu:
    return Gpu("NVIDIA H100", "GPU-0", 80 << 30, free_gib << 30, for_many)


def machine(gpus: int) -> GpuMachine:
    return GpuMachine("580.65", (13, 0), (gpu(),) * gpus)


def have_torch(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    monkeypatch.setattr(doctor, "_is_installed", lambda _: version is not None)

    def found(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", found)


@pytest.mark.parametrize(
    ("there", "instances", "marks", "words"),
    [
        (None, 1, [Mark.BAD], "--gpus all"),
        (GpuMachine("580.65", (13, 0), (gpu(),)), 1, [Mark.GOOD, Mark.GOOD], ""),
        (GpuMachine("550.54", (12, 4), (gpu(),)), 1, [Mark.BAD, Mark.GOOD], "update the driver"),
        (GpuMachine("580.65", (13, 0), (gpu(),)), 2, [Mark.GOOD, Mark.BAD, Mark.GOOD], "--instances-per-gpu"),
        (GpuMachine("580.65", (13, 0), ()), 2, [Mark.GOOD, Mark.BAD], "0 GPUs"),
        (GpuMachine("580.65", (13, 0), (gpu(free_gib=40),)), 1, [Mark.GOOD, Mark.NOTE], "Others use it"),
        (GpuMachine("580.65", (13, 0), (gpu(for_many=False),)), 1, [Mark.GOOD, Mark.NOTE], "for one process"),
    ],
)
def test_what_a_machine_with_gpus_lacks(
    monkeypatch: pytest.MonkeyPatch, there: GpuMachine | None, instances: int, marks: list[Mark], words: str
) -> None:
    have_torch(monkeypatch, "2.13.0+cu130")
    findings = doctor._gpus(there, instances, {})
    assert [finding.mark for finding in findings] == marks
    assert words in "\n".join(map(str, findings))


def test_driver_is_looked_at_also_before_torch_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    have_torch(monkeypatch, None)
    findings = doctor._gpus(GpuMachine("580.65", (13, 0), (gpu(),)), 1, {})
    assert [finding.mark for finding in findings] == [Mark.GOOD, Mark.GOOD]


@pytest.mark.parametrize("machine", [machine(gpus) for gpus in range(4)], ids=lambda there: f"{len(there.gpus)} GPUs")
@pytest.mark.parametrize("instances", [1, 2, 3])
def test_too_few_gpus_are_bad_where_serve_refuses_them(
    monkeypatch: pytest.MonkeyPatch, machine: GpuMachine, instances: int
) -> None:
    for module in (preflight, environment):
        monkeypatch.setattr(module, "runs_on_cpu", lambda: False)
    have_torch(monkeypatch, "2.13.0+cu130")
    is_bad = any(finding.mark is Mark.BAD for finding in doctor._gpus(machine, instances, {}))
    try:
        preflight.check_gpus(parse_serve(["--instances", str(instances)]), machine, {})
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
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/cc" if compiler else None)
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    if headers:
        (tmp_path / "Python.h").touch()
    finding = doctor._compiler()
    assert finding.mark is mark
    assert words in str(finding)


def test_devices_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    have_torch(monkeypatch, "2.13.0+cu130")
    findings = doctor._gpus(GpuMachine("580.65", (13, 0), (gpu(),)), 1, {"CUDA_VISIBLE_DEVICES": "3"})
    assert findings[-1].mark is Mark.BAD


def test_fewer_cores_than_instances(build: str) -> None:
    finding = doctor._cores(None, 100_000, {})
    assert finding.mark is (Mark.NOTE if build == "cpu" else Mark.GOOD)


def test_more_cores_than_instances_and_each_would_compute_on_one(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(9))
    told = doctor._cores("some/model", 2, {})
    assert ("OMP_NUM_THREADS=4 " in str(told)) == (build == "cpu")
    silent = [doctor._cores(None, 2, {}), doctor._cores("m", 2, {"OMP_NUM_THREADS": "1"}), doctor._cores("m", 9, {})]
    assert {finding.mark for finding in silent} == {Mark.GOOD}


def test_more_instances_than_there_is_memory_for(build: str) -> None:
    finding = doctor._memory(None, 100_000)
    assert finding.mark is (Mark.BAD if build == "cpu" else Mark.GOOD)


def test_taken_port_and_missing_model_keep_it_from_working(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        findings = doctor.examine(str(tmp_path), 1, port)
        assert found(f"port {port}", findings).mark is Mark.BAD
        assert found(f"model {tmp_path}", findings).mark is Mark.BAD
        assert main(["doctor", str(tmp_path), "--instances", "1", "--port", str(port)]) == 1
    out = capsys.readouterr().out
    assert " BAD  port" in out
    assert out.rstrip().endswith("of these would keep `llumnix serve` from working.")


@pytest.mark.parametrize(
    ("version", "mark", "words"),
    [
        ("0.31.2", Mark.GOOD, ""),
        ("0.32.0", Mark.GOOD, ""),
        ("0.33.0", Mark.NOTE, "no test has run on this version"),
        ("0.34.0", Mark.BAD, "0.31, 0.32 or 0.33 is needed"),
        (None, Mark.BAD, "vLLM is not installed"),
    ],
)
def test_which_versions_of_vllm_will_do(
    version: str | None, mark: Mark, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llumnix.vllm_words.installed_version", lambda: version)
    monkeypatch.setattr(doctor, "installed_version", lambda: version)
    finding = doctor._vllm()
    assert (finding.mark, words in finding.advice) == (mark, True)
    assert mark is Mark.BAD or "0.31, 0.32 or 0.33 will do" in finding.what


@pytest.mark.parametrize("port", ["-1", "65536", "x", ""])
def test_port_that_cannot_be(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--port", port]) == 2
    assert "--port must be a number below 65536" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "sampler", "mark", "words"),
    [
        (set(), None, Mark.GOOD, "all packages that vLLM names"),
        ({"flashinfer-python"}, None, Mark.BAD, "VLLM_USE_FLASHINFER_SAMPLER=0"),
        ({"flashinfer-python"}, "0", Mark.NOTE, "missing: flashinfer-python"),
        (set("abcdefgh"), None, Mark.NOTE, "missing: a, b, c, d, e, f, …"),
        ({"vllm"}, None, Mark.NOTE, "does not say"),
    ],
)
def test_packages_of_vllm_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, missing: set[str], sampler: str | None, mark: Mark, words: str
) -> None:
    wanted = [*"abcdefgh", 'flashinfer-python==0.7; platform_system == "Linux"', 'ray; extra == "bench"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)

    def distribution(name: str) -> str:
        if name in missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return name

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    if sampler is not None:
        monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", sampler)
    finding = doctor._what_vllm_needs()
    assert finding.mark is mark
    assert words in str(finding)
