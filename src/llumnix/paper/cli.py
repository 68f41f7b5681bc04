"""`llumnix reproduce`: a figure of the paper, simulated, beside the published one."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llumnix.errors import UsageError, refused_as
from llumnix.paper.claims import claims, write_claims
from llumnix.paper.experiments import FIGURES, Run
from llumnix.paper.measure import Measures
from llumnix.paper.points import Point, published_points, write_points
from llumnix.paper.runs import find_result, points_of, run_all
from llumnix.paths import a_path
from llumnix.report.pictures import require_matplotlib

NOTES = """Maxima are over points, as the paper states them; geometric means are over all points. `–`: the points \
are not published, or the comparison does not exist. Parameters, definitions and known differences: \
`docs/measure/reproduce.md`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `llumnix reproduce`."""
    parser.description = "Simulate the experiments behind a figure of the paper and draw ours beside the published."
    parser.add_argument("figure", help=f"number of the figure: {', '.join(map(str, FIGURES))}")
    parser.add_argument("--out", type=a_path, required=True, help="directory for the CSV, the picture and the claims")
    parser.add_argument("--trace", action="append", help="only this trace (can be repeated)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each point, each with a seed of its own (1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="simulations at a time (all cores)")
    parser.add_argument("--records", type=a_path, help="draw the runs of an earlier --out without running anything")


def run(args: argparse.Namespace) -> int:
    """Carries out `llumnix reproduce`. Returns 0; raises UsageError for bad input."""
    figure = _figure(args.figure)
    require_matplotlib()
    if args.seeds < 1:
        raise UsageError("--seeds must be at least 1.")
    if args.jobs < 1:
        raise UsageError("--jobs must be at least 1.")
    runs = [one for seed in range(args.seeds) for one in FIGURES[figure](seed)]
    paper = published_points(figure)
    if args.trace:
        runs = _only(runs, args.trace)
        wanted = {"Normal", "High Priority"} if figure == 13 else {one.trace for one in runs}
        paper = [point for point in paper if point.trace in wanted]
    with refused_as(f"Cannot write to --out {args.out}"):
        args.out.mkdir(parents=True, exist_ok=True)
    results = _results(runs, args)
    write_reproduction(figure, points_of(runs, results), paper, args.out)
    return 0


def _figure(text: str) -> int:
    name = text.lower().removeprefix("figure").removeprefix("fig").strip()
    known = {str(number): number for number in FIGURES}
    if name not in known:
        raise UsageError(f"There is no figure {text!r} to reproduce: choose one of {', '.join(known)}.")
    return known[name]


def _only(runs: Sequence[Run], traces: Sequence[str]) -> list[Run]:
    known = list(dict.fromkeys(run.trace for run in runs))
    for trace in traces:
        if trace not in known:
            raise UsageError(f"The figure has no trace {trace!r}: it has {', '.join(known)}.")
    return [run for run in runs if run.trace in traces]


def _results(runs: Sequence[Run], args: argparse.Namespace) -> dict[str, Measures]:
    if args.records is not None:
        found = {run.key: find_result(args.records / "runs", run) for run in runs}
        results = {key: measures for key, measures in found.items() if measures is not None}
        if not results:
            raise UsageError(f"{args.records} has no runs of this figure with these parameters.")
        if len(results) < len(runs):
            missing = len(runs) - len(results)
            print(f"Of {len(runs)} runs, {missing} are not in {args.records}: drawn without them.", file=sys.stderr)
        return results
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(f"figure {args.figure}", total=len(runs))
        return run_all(runs, args.out / "runs", args.jobs, lambda _: bar.advance(task))


def write_reproduction(figure: int, points: Sequence[Point], paper: Sequence[Point], directory: Path) -> None:
    """Writes `figureNN.csv`, `figureNN.png` and `figureNN.md`, and prints the claims."""
    from llumnix.paper.figures import TITLES, draw_figure  # matplotlib takes a second to load

    stem = directory / f"figure{figure}"
    write_points(stem.with_suffix(".csv"), points)
    draw_figure(figure, points, paper, stem.with_suffix(".png"))
    text = write_claims(claims(figure, points, paper), TITLES[figure], NOTES)
    stem.with_suffix(".md").write_text(text)
    Console().print(Markdown(text))
