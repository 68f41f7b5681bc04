"""Tables for the lab log from `out/results.jsonl`, in Markdown: runs of the same command side by side.

python benchmarks/lab_log.py --last 3            of the last three runs
python benchmarks/lab_log.py drain --last 2      of the last two whose command has `drain` in it
"""

from __future__ import annotations

import argparse
import sys
from itertools import groupby

import msgspec
from frame.arguments import at_least_one
from frame.verdict import RESULTS, Figure, Run


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="?", default="", help="Only runs whose command has these in it.")
    parser.add_argument("--last", type=at_least_one, default=1, help="So many runs, the last ones. Default: 1.")
    arguments = parser.parse_args()
    lines = RESULTS.read_bytes().splitlines() if RESULTS.exists() else []
    runs = [run for line in lines if arguments.words in (run := msgspec.json.decode(line, type=Run)).command]
    for _, alike in groupby(runs[-arguments.last :], key=lambda run: run.command):
        print("\n".join(entry(list(alike))))
    return 0


def entry(runs: list[Run]) -> list[str]:
    """Of runs of one command: where and when, and a table with a column for each."""
    heads = [f"{run.at}, {run.commit}, load {run.load[0]:.1f}" for run in runs]
    names = list(dict.fromkeys(figure.name for run in runs for figure in run.figures))
    rows = [_row(name, [_of(run, name) for run in runs]) for name in names]
    return [
        f"`benchmarks/{runs[0].command}`, {runs[0].machine}:",
        "",
        f"| | {' | '.join(heads)} | goal |",
        f"|---|{'---|' * len(runs)}---|",
        *rows,
        "",
    ]


def _of(run: Run, name: str) -> Figure | None:
    return next((figure for figure in run.figures if figure.name == name), None)


def _row(name: str, figures: list[Figure | None]) -> str:
    cells = ["" if each is None else f"{each.text}{' (missed)' if each.missed else ''}" for each in figures]
    goals = {str(each.goal) for each in figures if each is not None and each.goal is not None}
    return f"| {name} | {' | '.join(cells)} | {', '.join(sorted(goals))} |"


if __name__ == "__main__":
    sys.exit(main())
