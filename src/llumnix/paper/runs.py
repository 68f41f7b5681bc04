"""Runs the simulations of a figure: in parallel, resumable, averaged over seeds.

Every finished run leaves one small file in `OUT/runs/`; a run whose file is there, made with the same
parameters, is not run again. So a killed reproduction goes on where it was, and `--records` draws without running.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import msgspec

from llumnix.paper.experiments import Run
from llumnix.paper.measure import Measures, measure
from llumnix.paper.points import Point
from llumnix.processes import results_of
from llumnix.whole_file import write_whole

SOURCES = (
    "config.py",
    "control",
    "knob.py",
    "paper/experiments.py",
    "paper/measure.py",
    "paper/stall.py",
    "policy",
    "report/records.py",
    "roles_config.py",
    "sim",
    "types.py",
    "workload",
)
"""Parts of the package that a result depends on."""


@cache
def code_digest() -> str:
    """Of the sources behind a result: an answer of other code is not taken for one of this."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name in SOURCES:
        root = package / name
        files = (
            [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.suffix in (".py", ".toml"))
        )
        for path in files:
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class _Result(msgspec.Struct, frozen=True):
    fingerprint: str
    measures: Measures


def fingerprint(run: Run) -> str:
    """Of everything that decides the result: the run's parameters and our code."""
    return hashlib.sha256(msgspec.json.encode([code_digest(), asdict(run)], order="sorted")).hexdigest()[:16]


def find_result(directory: Path, run: Run) -> Measures | None:
    """The result of an earlier run, or None. A file that is broken or of other parameters counts as none."""
    try:
        result = msgspec.json.decode((directory / f"{run.key}.json").read_bytes(), type=_Result)
    except (OSError, ValueError):
        return None
    return result.measures if result.fingerprint == fingerprint(run) else None


def save_result(directory: Path, run: Run, measures: Measures) -> None:
    """A killed process leaves no half of one."""
    write_whole(directory / f"{run.key}.json", msgspec.json.encode(_Result(fingerprint(run), measures)))


def run_all(runs: Sequence[Run], directory: Path, jobs: int, done: Callable[[Run], None]) -> dict[str, Measures]:
    """Results by `Run.key`; calls `done` after each run, also one that was found."""
    directory.mkdir(parents=True, exist_ok=True)
    results: dict[str, Measures] = {}
    missing: list[Run] = []
    for run in runs:
        found = find_result(directory, run)
        if found is None:
            missing.append(run)
        else:
            results[run.key] = found
            done(run)
    for number, measures in results_of(measure, missing, jobs):
        run = missing[number]
        save_result(directory, run, measures)
        results[run.key] = measures
        done(run)
    return results


def points_of(runs: Sequence[Run], results: dict[str, Measures]) -> list[Point]:
    """One point per curve and x: the mean over seeds, with the 95 % interval of that mean."""
    groups: dict[tuple[int, str, str, str, float, int], list[tuple[float, float]]] = {}
    for run in runs:
        for index, (trace, metric, x, y) in enumerate(results.get(run.key, [])):
            # In figure 15, x is measured, too: runs that differ only in the seed are one point.
            place = run.x if run.figure != 12 else x
            groups.setdefault((run.figure, trace, metric, run.policy, place, index), []).append((x, y))
    points = []
    for (figure, trace, metric, policy, _, _), pairs in groups.items():
        ys = [y for _, y in pairs]
        low, high = interval(ys)
        points.append(
            Point(
                figure=figure,
                trace=trace,
                metric=metric,
                policy=policy,
                x=sum(x for x, _ in pairs) / len(pairs),
                y=sum(ys) / len(ys),
                y_low=low,
                y_high=high,
            )
        )
    return points


T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for a two-sided 95 % interval with 1, 2, … degrees of freedom."""


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of the mean; None with a single value."""
    count = len(values)
    if count < 2:
        return None, None
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = (T_95[count - 2] if count - 2 < len(T_95) else 1.96) * deviation / math.sqrt(count)
    return mean - half, mean + half
