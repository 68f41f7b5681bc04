"""From a recorded run to a profile and to predictions. What was recorded here was simulated, so that it is known what
the profile and the alternatives must come to."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from lived_run import TRUTH, lived, recorded
from llumnix.cli import main
from llumnix.errors import UsageError
from llumnix.record.read import read_run
from llumnix.report.summary import summarize
from llumnix.sim.profiles.file import load_profile, write_profile
from llumnix.sim.profiles.recorded import fit_run
from llumnix.types import InstanceState
from llumnix.whatif import cli as whatif_cli
from llumnix.whatif.prediction import GOOD
from llumnix.workload.workload import load_workload
from recorded_run import about, ended, instance, looked, step, write_run


def test_profile_of_a_run_is_what_its_steps_and_copies_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", recorded(lived()), unit_tokens=0)
    out = tmp_path / "mine.toml"
    assert main(["profile", "--from", str(tmp_path / "run"), "--out", str(out)]) == 0
    mine = load_profile(str(out))
    for size, context in ((1, 100), (4, 900), (8, 1500)):
        assert mine.decode.step_ms(size, context) == pytest.approx(TRUTH.decode.step_ms(size, context), rel=0.03)
    assert mine.prefill.step_ms(300) == pytest.approx(TRUTH.prefill.step_ms(300), rel=0.05)
    assert mine.memory == TRUTH.memory
    assert mine.copy_s(20) == pytest.approx(TRUTH.copy_s(20), rel=0.1)
    assert mine.host.request_ms < 10
    assert (mine.scheduler.max_num_seqs, mine.scheduler.max_num_batched_tokens) == (64, 512)
    said = capsys.readouterr().err
    assert "Decode steps are off by" in said
    assert "with batches of 1 to" in said
    assert "what is beyond is extrapolated" in said
    assert "No instance was seen to start: 10 s is assumed." in said


def test_start_up_is_how_long_it_was_starting(tmp_path: Path) -> None:
    steps = [step(float(n), "i0", 1 + n % 2, 100) for n in range(30)]
    starting = {n: InstanceState.STARTING if n < 17 else InstanceState.RUNNING for n in range(10, 30)}
    rows = [instance(float(n), "i0") for n in range(30)]
    rows += [instance(float(n), "i1", state) for n, state in starting.items()]
    write_run(tmp_path, [looked(*rows, steps=steps), ended("r")])
    assert fit_run(read_run(tmp_path), "mine").profile.host.start_up_s == 7.0


def test_too_little_for_a_profile_is_refused_in_a_sentence(tmp_path: Path) -> None:
    write_run(tmp_path, [looked(instance(1.0, "i0"), steps=[step(1.0, "i0", 1, 9)] * 30), ended("r")])
    with pytest.raises(UsageError, match=r"30 looks at the steps .* largest batch was 1; a profile needs 20, and"):
        fit_run(read_run(tmp_path), "mine")


def test_flags_of_measuring_have_no_use_for_a_recorded_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--from", str(tmp_path), "--out", str(tmp_path / "x.toml"), "--batches", "1,2"]) == 2
    assert "--batches is for measuring" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_run(folder, recorded(lived()), of=about(), unit_tokens=0)
    return folder


def test_alternatives_come_out_as_they_would_have_been(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = ["--try", "instances=3", "--try", "policy=round-robin"]
    code = main(["whatif", str(run), *tries, "--repeats", "4", "--jobs", "1", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "600 requests in" in said
    assert "instances=3" in (tmp_path / "out" / "whatif.md").read_text()
    found = json.loads((tmp_path / "out" / "whatif.json").read_text())
    grades = {each["metric"]["name"]: each["grade"] for each in found["known"]}
    assert {grades[name] for name in ("TTFT P50", "TPOT P50", "latency P50", "latency P99")} == {GOOD}
    truth = summarize(lived(instances=3)).requests
    assert truth.latency_s is not None
    assert truth.ttft_s is not None
    fewer = {each["metric"]["name"]: each for each in found["tried"][0]["predictions"]}
    for name, value in (
        ("latency P50", truth.latency_s.p50),
        ("latency P99", truth.latency_s.p99),
        ("TTFT P50", 1e3 * truth.ttft_s.p50),
    ):
        assert fewer[name]["low"] <= value <= fewer[name]["high"], name
    assert found["tried"][0]["instance_hours"] == pytest.approx(0.75 * found["instance_hours"])


def test_same_run_gives_the_same_predictions_however_many_processes_compute(run: Path, tmp_path: Path) -> None:
    for jobs in (1, 2):
        command = ["whatif", str(run), "--try", "migration=off", "--repeats", "2", "--jobs", str(jobs)]
        assert main([*command, "--out", str(tmp_path / str(jobs))]) == 0
    first, second = (json.loads((tmp_path / str(jobs) / "whatif.json").read_text()) for jobs in (1, 2))
    assert first == second


def test_the_last_requests_alone_are_simulated_where_so_many_are_wanted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["whatif", str(run), "--repeats", "2", "--jobs", "1", "--out", str(tmp_path)]
    assert main([*command, "--requests", "100"]) == 0
    first, second, third, *_ = json.loads((tmp_path / "whatif.json").read_text())["about"]
    assert ": 100 requests in" in first
    assert second == "The 500 before them, on the same instances, are left out."
    assert third.endswith("this is the end of the longest part in which the same instances served.")
    assert main([*command, "--requests", "0"]) == 2
    assert "--requests must be at least 1." in capsys.readouterr().err


def test_what_was_found_is_written_also_where_nobody_reads_what_is_printed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`llumnix whatif … --out FOLDER | head`"""
    monkeypatch.setattr(whatif_cli, "print_what_if", mock.Mock(side_effect=BrokenPipeError))
    parser = argparse.ArgumentParser()
    whatif_cli.add_arguments(parser)
    words = [str(run), "--repeats", "2", "--jobs", "1", "--requests", "100", "--out", str(tmp_path / "out")]
    with pytest.raises(BrokenPipeError):
        whatif_cli.run(parser.parse_args(words))
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"whatif.json", "whatif.md"}


def test_a_folder_that_cannot_be_is_told_before_anything_is_simulated(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(whatif_cli, "what_if", mock.Mock(side_effect=AssertionError))
    (tmp_path / "file").touch()
    assert main(["whatif", str(run), "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == f"llumnix: Cannot write to --out {tmp_path}/file: File exists.\n"


def test_profile_of_another_machine_is_not_believed(run: Path, tmp_path: Path) -> None:
    command = ["whatif", str(run), "--profile", "a100-llama-7b", "--try", "instances=5", "--repeats", "2"]
    main([*command, "--jobs", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "whatif.json").read_text())
    (latency,) = (each for each in found["tried"][0]["predictions"] if each["metric"]["name"] == "latency P50")
    assert latency["value"] is None
    assert latency["why_withheld"].startswith("the simulation of what was is off by")


def test_what_is_no_recorded_run_costs_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["whatif"], ["record", "export", "--format", "azure"], ["profile", "--out", "x.toml", "--from"]):
        folder = [str(tmp_path)]
        words = [*command, *folder] if command[0] != "record" else ["record", "export", *folder, "--format", "azure"]
        assert main(words) == 2
        assert "is no recorded run, and has none in it" in capsys.readouterr().err
    write_run(tmp_path / "few", [ended(f"r{n}", float(n)) for n in range(20)])
    assert main(["whatif", str(tmp_path / "few")]) == 2
    assert "50 are the fewest" in capsys.readouterr().err


def test_exported_traces_are_the_same_requests(tmp_path: Path) -> None:
    prompts = {"a": [1] * 1500, "b": [1] * 1100 + [2] * 400, "c": [3] * 100}
    rows = [ended(name, 10.0 * n, tokens, output_tokens=5) for n, (name, tokens) in enumerate(prompts.items())]
    write_run(tmp_path / "run", [*rows, ended("silent", 40.0, output_tokens=0)], unit_tokens=128)
    for form, file in (("mooncake", "m.jsonl"), ("azure", "a.csv")):
        assert main(["record", "export", str(tmp_path / "run"), "--format", form, "--out", str(tmp_path / file)]) == 0
        found = load_workload(str(tmp_path / file))
        assert [(each.arrival_s, each.prompt_tokens, each.output_tokens) for each in found.requests] == [
            (0.0, 1500, 5),
            (10.0, 1500, 5),
            (20.0, 100, 5),
        ]
    first, second, third = (each.block_hashes for each in load_workload(str(tmp_path / "m.jsonl")).requests)
    assert [one == other for one, other in zip(first, second, strict=True)] == [True, True, False]
    assert not {*first} & {*third}
    assert main(["record", "export", str(tmp_path / "run"), "--format", "azure", "--out", str(tmp_path / "a.txt")]) == 2


def test_requests_that_an_instance_cannot_hold_are_cut_and_counted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a profile of less memory than the server had."""
    small = replace(TRUTH, memory=replace(TRUTH.memory, total_blocks=8))
    write_profile(small, tmp_path / "small.toml")
    longer = sum(one.prompt_tokens + one.output_tokens > small.max_sequence_tokens for one in read_run(run).requests)
    assert longer
    main(["whatif", str(run), "--profile", str(tmp_path / "small.toml"), "--repeats", "2", "--jobs", "1"])
    assert f"{longer} of them are longer than the {small.max_sequence_tokens} tokens" in capsys.readouterr().out
