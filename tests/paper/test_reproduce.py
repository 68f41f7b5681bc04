"""`llumnix reproduce` as a user calls it."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llumnix.cli import main
from llumnix.paper import cli, runs
from llumnix.paper.experiments import FIGURES, Run


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["17"], "no figure '17'"),
        (["²"], "no figure '²'"),
        (["1" * 5000], "no figure '1"),
        (["11", "--trace", "X"], "no trace 'X'"),
        (["11", "--seeds", "0"], "--seeds"),
    ],
)
def test_reproduce_says_what_it_cannot_do(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *words, "--out", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err


def small(all_runs: list[Run]) -> list[Run]:
    """The same runs with far fewer requests."""
    return [
        Run(**{**{name: getattr(run, name) for name in Run.__slots__}, "workload": f"{run.workload}&requests=60"})
        for run in all_runs[::4]
    ]


@pytest.mark.parametrize(("figure", "trace"), [(11, "ShareGPT"), (13, "S-S"), (14, "Gamma"), (15, "Threshold")])
def test_a_figure_has_csv_picture_and_claims_in_the_form_of_the_contract(
    figure: int, trace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = FIGURES[figure]
    monkeypatch.setitem(FIGURES, figure, lambda seed: small(make(seed)))
    words = ["reproduce", str(figure), "--out", str(tmp_path), "--jobs", "1", "--seeds", "2", "--trace", trace]
    assert main(words) == 0
    header, *points = csv.reader((tmp_path / f"figure{figure}.csv").read_text().splitlines())
    assert header == ["figure", "trace", "metric", "policy", "x", "y", "y_low", "y_high"]
    assert points
    for *_, y, low, high in points:
        assert float(low) <= float(y) <= float(high)
    assert (tmp_path / f"figure{figure}.png").read_bytes().startswith(b"\x89PNG")
    assert "the paper states" in (tmp_path / f"figure{figure}.md").read_text()


def test_a_reproduction_that_was_killed_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = small(FIGURES[13](0))
    ran: list[str] = []

    def measure_some(run: Run) -> Any:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(run.key)
        return [(run.trace, "Prefill P99", run.x, 1.0)]

    monkeypatch.setattr(runs, "measure", measure_some)
    with pytest.raises(KeyboardInterrupt):
        runs.run_all(few, tmp_path, 1, lambda run: None)
    first, ran[:] = list(ran), []
    (tmp_path / f"{first[1]}.json").write_text("{broken")
    monkeypatch.setattr(runs, "measure", lambda run: ran.append(run.key) or [])  # type: ignore[func-returns-value]
    results = runs.run_all(few, tmp_path, 1, lambda run: None)
    assert first[0] not in ran
    assert first[1] in ran
    assert len(results) == len(few)


def test_earlier_runs_are_drawn_without_running_anything_and_missing_ones_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, drawn = tmp_path / "made", tmp_path / "drawn"
    assert main(["reproduce", "10", "--trace", "7B", "--out", str(made), "--jobs", "1"]) == 0
    monkeypatch.setattr(cli, "run_all", None)
    assert main(["reproduce", "10", "--trace", "7B", "--records", str(made), "--out", str(drawn)]) == 0
    assert (made / "figure10.csv").read_text() == (drawn / "figure10.csv").read_text()
    assert "runs" not in capsys.readouterr().err
    all_runs = FIGURES[10](0)
    assert main(["reproduce", "10", "--records", str(made), "--out", str(drawn)]) == 0
    missing = sum(run.trace != "7B" for run in all_runs)
    assert 0 < missing < len(all_runs)
    assert f"Of {len(all_runs)} runs, {missing} are not in {made}" in capsys.readouterr().err
    assert main(["reproduce", "10", "--records", str(tmp_path / "none"), "--out", str(drawn)]) == 2


TELLS_ONLY = {"appending", "errors", "journal", "json_lines", "paper/points", "paths", "recording"}
"""What a run loads that decides no result: how it is told, or why it is refused."""


def test_results_of_a_run_are_of_all_the_code_that_decides_them() -> None:
    names = "print(*(name for name, it in sys.modules.items() if 'llumnix.' in name and not hasattr(it, '__path__')))"
    asked = [sys.executable, "-c", f"import sys, llumnix.paper.measure; {names}"]
    loaded = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert "llumnix.types" in loaded
    decides = {name.removesuffix(".py") for name in runs.SOURCES}
    missing = [name for name in loaded if not {*_parts(name)} & (decides | TELLS_ONLY)]
    assert missing == []


def _parts(module: str) -> list[str]:
    """The paths of a module and of what it is in, as the list of sources has them."""
    parts = module.split(".")[1:]
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
