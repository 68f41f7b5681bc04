"""What `llumnix doctor` finds on machines of all kinds."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from llumnix import doctor
from llumnix.cli import main
from llumnix.findings import Finding, Mark
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
        findings = doctor.examine(parse_serve([str(tmp_path), "--instances", "1", "--port", str(port)]))
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
    assert "--port must be a " in capsys.readouterr().err


def test_what_serve_refuses_for_another_reason_is_told_in_its_words() -> None:
    findings = doctor.examine(parse_serve(["--instances", "1", "--port", "0", "--transports", "cuda"]))
    assert "--transports cuda is for GPUs" in found("would not start", findings).advice
