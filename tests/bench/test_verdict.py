from __future__ import annotations

import random
import statistics
import sys
from pathlib import Path

import lab_log
import msgspec
import pytest
from frame import verdict
from frame.verdict import Figure, at_least, at_most, conclude, likely, median


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(verdict, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(lab_log, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(sys, "argv", ["benchmarks/drain.py", "--streams", "5"])
    return tmp_path / "results.jsonl"


@pytest.mark.parametrize(
    ("figure", "code"),
    [
        (Figure("empty after", 5.0, at_most(5), "s"), 0),
        (Figure("empty after", 5.1, at_most(5), "s"), 1),
        (Figure("throughput", 0.97, at_least(0.97)), 0),
        (Figure("throughput", 0.96, at_least(0.97)), 1),
        (Figure("never empty", None, at_most(5)), 1),
        (Figure("without a goal", 1e9), 0),
        (Figure("not measured", None), 0),
    ],
)
def test_a_missed_goal_is_exit_code_1(results: Path, figure: Figure, code: int) -> None:
    assert conclude(Figure("failed", 0, at_most(0)), figure) == code


def test_each_run_is_a_line_that_says_what_was_run_where_and_what_came(results: Path) -> None:
    conclude(Figure("moved", 5))
    conclude(median("gap", [3.0, 1.0, 2.0], at_most(4), "ms"))
    first, second = (msgspec.json.decode(line, type=verdict.Run) for line in results.read_bytes().splitlines())
    assert first.command == "drain.py --streams 5"
    assert first.commit != "unknown"
    assert "GiB" in first.machine
    assert len(first.load) == 3
    assert first.figures == (Figure("moved", 5),)
    assert second.figures == (Figure("gap", 2.0, at_most(4), "ms", lowest=1.0, highest=3.0),)


def test_many_rounds_say_how_well_it_is_known_what_they_say() -> None:
    rng = random.Random(2)
    few, many = ([rng.gauss(1.05, 0.1) for _ in range(count)] for count in (10, 400))
    wide, narrow = likely("ratio", few, statistics.median), likely("ratio", many, statistics.median, at_most(1.02))
    assert narrow == likely("ratio", many, statistics.median, at_most(1.02)), "drawn again, and the same"
    assert narrow.missed
    ends = [end or 0.0 for end in (narrow.lowest, narrow.measured, narrow.highest)]
    assert [1.03, *ends, 1.07] == sorted([1.03, *ends, 1.07])
    assert (wide.highest or 0.0) - (wide.lowest or 0.0) > 2 * (ends[2] - ends[0])


def test_runs_of_one_command_stand_side_by_side_in_the_lab_log(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    conclude(Figure("empty after", 1.5, at_most(5), "s"))
    conclude(Figure("empty after", 6.25, at_most(5), "s"), Figure("moved", 12345))
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["lab_log.py", "drain", "--last", "2"])
    assert lab_log.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("`benchmarks/drain.py --streams 5`, ")
    assert lines[4:6] == ["| empty after | 1.5 s | 6.25 s (missed) | ≤ 5 |", "| moved |  | 12,345 |  |"]
