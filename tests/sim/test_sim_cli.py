"""`llumnix simulate` as a user calls it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from llumnix.cli import main
from recorded_run import ended, write_run

SIMULATE = ["simulate", "--workload", "S-S?rate=8&requests=300", "--instances", "4"]


def test_simulate_writes_the_records_of_a_live_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SIMULATE, "--out", str(tmp_path), "--seed", "3"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "instances.csv",
        "migrations.csv",
        "requests.csv",
        "summary.json",
    ]
    rows = list(csv.DictReader((tmp_path / "requests.csv").read_text().splitlines()))
    assert len(rows) == 300
    assert all(float(row["ttft_s"]) > 0 for row in rows)
    assert json.loads((tmp_path / "summary.json").read_text())["run"]["seed"] == 3
    assert "300 of 300 requests finished" in capsys.readouterr().out


def test_the_first_thing_that_anybody_tries_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one request of the trace that is too long for the default profile is cut, and said."""
    words = ["simulate", "--workload", "azure-conv", "--instances", "12", "--out", str(tmp_path)]
    assert main([*words, "--requests", "5500"]) == 0
    said = capsys.readouterr()
    assert "1 request is longer than the 12,560 tokens that an instance of a10-llama-7b holds, of 5,500" in said.err
    assert "5,500 of 5,500 requests finished" in said.out
    rows = list(csv.DictReader((tmp_path / "requests.csv").read_text().splitlines()))
    assert max(int(row["prompt_tokens"]) + int(row["output_tokens"]) for row in rows) == 12560


def test_target_for_tokens_is_for_engines_that_compute_prompts_in_parts(tmp_path: Path) -> None:
    target = [*SIMULATE, "--out", str(tmp_path), "--tpot-target-ms", "40"]
    assert main(target) == 2
    assert main([*target, "--profile", "a100-llama-7b"]) == 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--workload and --instances and --out must be given, as in: llumnix simulate --workload azure-conv"),
        (["--workload", "S-S"], "--instances and --out must be given"),
        (["--compare", "runs/live", "--instances", "2"], "--out must be given"),
    ],
)
def test_what_is_missing_is_asked_for_at_once(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *flags]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_small_blocks_of_content_fill_the_larger_ones_of_an_engine(tmp_path: Path) -> None:
    """A Qwen-Bailian trace has an id for every 16 tokens, the tiny model's engine blocks of 32."""
    row = {"input_length": 1600, "output_length": 4, "hash_ids": [*range(100)]}
    lines = [json.dumps({"chat_id": i, "timestamp": 61.1 + 5 * i} | row) for i in range(20)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    (tmp_path / "cold.jsonl").write_text(
        "\n".join(line.replace("[0, 1,", f"[{i + 200}, 1,") for i, line in enumerate(lines))
    )
    ttft = {}
    for name in ("t", "cold"):
        words = ["--workload", str(tmp_path / f"{name}.jsonl"), "--instances", "1", "--out", str(tmp_path / name)]
        assert main(["simulate", "--profile", "cpu-tiny", *words]) == 0
        rows = csv.DictReader((tmp_path / name / "requests.csv").read_text().splitlines())
        ttft[name] = [float(row["ttft_s"]) for row in rows]
    assert ttft["t"][0] == ttft["cold"][0]
    assert ttft["t"][-1] < 0.3 * ttft["cold"][-1]


def test_what_a_server_recorded_is_a_workload_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also when a client left before its first token, or gave two requests one id."""
    arrivals = {"a": 0.0, "left": 1.0, "b": 2.0}
    rows = [ended(name, at_s, output_tokens=0 if name == "left" else 3) for name, at_s in arrivals.items()]
    write_run(tmp_path / "run", [*rows, ended("a", 2.0)])
    words = ["--workload", str(tmp_path / "run" / "requests-f0-000.jsonl"), "--instances", "1"]
    assert main(["simulate", *words, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "1 row is left out" in said.err
    assert "3 of 3 requests finished" in said.out


def test_the_same_command_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert main([*SIMULATE, "--out", str(tmp_path / name), "--fault", "crash@10"]) == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_run_compared_with_itself_has_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live = tmp_path / "live"
    assert main([*SIMULATE, "--out", str(live)]) == 0
    assert main(["simulate", "--instances", "4", "--compare", str(live), "--out", str(tmp_path / "again")]) == 0
    table = (tmp_path / "again" / "compare.md").read_text()
    assert "| TTFT P99 |" in table
    errors = [line.split("|")[4].strip() for line in table.splitlines()[2:]]
    assert set(errors) <= {"+0.0%", "-0.0%", "–"}
    assert "predicted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--workload", "no-such"], "no-such is not a workload"),
        (["--workload", "S-S?rate=nan"], "rate must be a number"),
        (["--instances", "0"], "--instances must be between"),
        (["--profile", "no-such"], "no profile 'no-such'"),
        (["--policy", "no-such"], "must be one of"),
        (["--fault", "melt@3"], "is not a fault"),
        (["--workload", "uniform:prompt=20000"], "holds at most"),
        (["--migrate-out-freeness", "9", "--migrate-in-freeness", "3"], "must not be below"),
        (["--compare", "no-such"], "Cannot read"),
        (["--sample-s", "-1"], "--sample-s"),
        (["--sample-s", "nan"], "--sample-s"),
        (["--sample-s", "1e-9"], "--sample-s"),
        (["--pairing-interval-s", "1e-9"], "--pairing-interval-s"),
        (["--migrate-out-freeness", "nan"], "must be a number up to"),
        (["--prepare-timeout-s", "inf"], "must be a number up to"),
        (["--scale", "--scale-out-freeness", "nan"], "--scale-out-freeness must be a number up to"),
        (["--scale", "--scale-window-s", "nan"], "--scale-window-s"),
        (["--instances", "-2"], "--instances must be between"),
        (["--rate", "0"], "rate must be a number"),
        (["--seed", "-1"], "seed must be a whole number"),
        (["--max-instances", "4"], "--max-instances is for auto-scaling, which is off: say --scale."),
        (["--no-migration", "--relief-steps", "3"], "with --no-migration none does"),
        (["--policy", "infaas++", "--migrate-in-freeness", "9"], "with this --policy none does"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(
    flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SIMULATE, "--out", str(tmp_path / "out"), *flags]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


CLASSES = """tenant: header:X-Tenant
classes:
  quick: {ttft_s: 2.0}
  late: {max_hold_s: 60}
tenants:
  alice: {classes: [quick, late], weight: 2}
  bob: {classes: [late], requests_per_minute: 60}
"""


def test_classes_file_of_a_server_is_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "classes.yaml"
    file.write_text(CLASSES)
    workload = "S-S?rate=8&requests=600&tenants=alice*2+alice/late+bob"
    words = ["--workload", workload, "--instances", "4", "--out", str(tmp_path)]
    assert main(["simulate", *words, "--classes", str(file)]) == 0
    rows = json.loads((tmp_path / "classes.json").read_text())["classes"]
    alice, bob, quick = sorted(rows, key=lambda row: (row["class"], row["tenant"]))
    assert [(row["class"], row["tenant"]) for row in (alice, bob, quick)] == [
        *(("late", "alice"), ("late", "bob"), ("quick", "alice")),
    ]
    assert sum(row["requests"] for row in rows) == 600
    assert quick["requests"] == pytest.approx(300, abs=40)
    assert quick["ttft_met"] > 9 * quick["ttft_missed"]
    assert set(bob["refused"]) == {"429"}
    out = capsys.readouterr().out
    assert f"{bob['refused']['429']} × refused with 429" in out
    assert f"{bob['refused']['429']} × 429" in out


@pytest.mark.parametrize(
    ("text", "workload", "sentence"),
    [
        (
            CLASSES + "others: {classes: [none]}\n",
            "S-S?requests=9&tenants=alice",
            "c.yaml:8: the file, others, classes",
        ),
        (CLASSES, "S-S?requests=9", "The option tenants=alice+bob of the workload spreads them"),
        (CLASSES, "S-S?requests=9&tenants=eve", "all would be refused"),
        (CLASSES, "S-S?requests=9&tenants=alice**2", "tenants must be names such as alice+bob"),
    ],
)
def test_wrong_classes_or_tenants_are_told_before_anything_runs(
    text: str, workload: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "c.yaml", tmp_path / "out"
    file.write_text(text)
    words = ["--workload", workload, "--instances", "1", "--out", str(out), "--classes", str(file)]
    assert main(["simulate", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_a_broken_row_of_a_trace_is_named_by_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "mine.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,10\n1,ten,10\n")
    assert main(["simulate", "--workload", str(trace), "--instances", "1", "--out", str(tmp_path)]) == 2
    assert "mine.csv:3" in capsys.readouterr().err
