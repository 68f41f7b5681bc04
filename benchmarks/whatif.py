"""Do live runs end where `llumnix whatif` says that they would?

    python benchmarks/whatif.py                                   6 pairs, of one load
    python benchmarks/whatif.py --pairs 12 --records DIR          another load as well; keeps what was recorded
    python benchmarks/whatif.py --pairs 2 --records DIR           goes on there: only what is missing is run

One load is sent to servers of paced engines (`_paced/`) that differ in one thing: as usual, with an instance less,
without moves, by round-robin; each records itself (`--record`). A pair is two of them: what the second measured is
compared with what is predicted from the first's recording alone. The usual one is once the first and once the second of
each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
from frame.arguments import at_least_one, positive
from frame.models import add_pace_flags, paced_engine_flags
from frame.server import llumnix_server
from frame.verdict import Figure, at_least, conclude
from rich.console import Console
from rich.table import Table

from llumnix.cli import main as llumnix
from llumnix.record.read import read_run
from llumnix.whatif.metrics import ALL, numbers_of
from llumnix.whatif.prediction import Prediction
from llumnix.whatif.report import WHATIF_JSON, WhatIf
from llumnix.whatif.stretch import longest_stretch

KV_MIB = 12  # 96 blocks of 32 tokens: about eight requests
WORKLOAD = "gamma:rate={rate},cv=2,prompt=exp100,output=exp200,cap=600,requests={requests},seed={seed}"
GOAL_PERCENT = 80.0


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    instances: int
    flags: tuple[str, ...]
    knobs: str
    """As `--try` says all that it may differ in."""


USUAL = Setting("usual", 4, (), "instances=4,policy=llumnix,migration=on")
OTHERS = (
    Setting("fewer", 3, (), "instances=3,policy=llumnix,migration=on"),
    Setting("no-moves", 4, ("--no-migration",), "instances=4,policy=llumnix,migration=off"),
    Setting("round-robin", 4, ("--policy", "round-robin"), "instances=4,policy=round-robin,migration=on"),
)


@dataclass(frozen=True, slots=True)
class Pair:
    seed: int
    first: Setting
    second: Setting

    def __str__(self) -> str:
        return f"{self.first.name} → {self.second.name}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Compared:
    pair: Pair
    prediction: Prediction
    measured: float

    @property
    def hit(self) -> bool:
        low, high = self.prediction.low, self.prediction.high
        return low is not None and high is not None and low <= self.measured <= high


def main() -> int:
    arguments = _parse()
    with ExitStack() as stack:
        records = arguments.records or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="whatif-")))
        folder = records / _load(arguments)
        pairs = list(islice(_pairs(), arguments.pairs))
        pace = paced_engine_flags(arguments.step_ms, arguments.token_ms, max_model_len=2048, kv_mib=KV_MIB)
        with pace as engine_flags:
            for pair in pairs:
                for setting in (pair.first, pair.second):
                    _record(arguments, folder, engine_flags, setting, pair.seed)
        compared, withheld = [], 0
        for pair in pairs:
            rows = list(_compare(folder, pair, arguments.repeats))
            known = [row for row in rows if row.prediction.value is not None]
            withheld += len(rows) - len(known)
            _print(pair, rows)
            compared += known
    return conclude(*_figures(pairs, compared, withheld))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--pairs", type=at_least_one, default=6, help="The first so many; six of each seed. Default: 6."
    )
    parser.add_argument("--rate", type=positive, default=3.5, help="Requests/s. Default: 3.5.")
    parser.add_argument("--requests", type=at_least_one, default=520, help="Of a run; below 500 no P99. Default: 520.")
    parser.add_argument("--repeats", type=at_least_one, default=8, help="Simulations of each. Default: 8.")
    parser.add_argument("--records", type=Path, help="Folder of what was recorded: what is there is not run again.")
    add_pace_flags(parser)
    return parser.parse_args()


def _pairs() -> Iterator[Pair]:
    seed = 1
    while True:
        for other in OTHERS:
            yield Pair(seed, USUAL, other)
            yield Pair(seed, other, USUAL)
        seed += 1


def _load(arguments: argparse.Namespace) -> str:
    """Name of a folder: what was recorded of another load, or of another pace, is not taken for this one's."""
    pace = f"{arguments.step_ms:g}ms+{arguments.token_ms:g}ms"
    return f"{arguments.rate:g}per-s-of-{arguments.requests}-at-{pace}"


def _run_folder(folder: Path, setting: Setting, seed: int) -> Path:
    return folder / f"{setting.name}-{seed}"


def _record(arguments: argparse.Namespace, folder: Path, engine_flags: list[str], setting: Setting, seed: int) -> None:
    """Unless it is there already: a run that was broken off left no summary."""
    run = _run_folder(folder, setting, seed)
    if (run / "bench" / "summary.json").exists():
        return
    workload = WORKLOAD.format(rate=arguments.rate, requests=arguments.requests, seed=seed)
    flags = (*setting.flags, "--record", str(run / str(os.getpid())))
    limits = ("--max-num-seqs", "64", "--max-num-batched-tokens", "512")
    with llumnix_server(engine_flags, *limits, *flags, instances=setting.instances) as server:
        words = ["bench", "--url", server.url, "--workload", workload, "--out", str(run / "bench"), "--no-figures"]
        if code := llumnix(words):
            raise SystemExit(code)


def _recorded(folder: Path, setting: Setting, seed: int) -> Path:
    """Of the attempt that came to its end, the last."""
    attempts = [path for path in _run_folder(folder, setting, seed).iterdir() if path.name != "bench"]
    return max(attempts, key=lambda path: path.stat().st_mtime)


def _compare(folder: Path, pair: Pair, repeats: int) -> Iterator[Compared]:
    first, second = (_recorded(folder, setting, pair.seed) for setting in (pair.first, pair.second))
    with tempfile.TemporaryDirectory(prefix="whatif-") as out:
        words = ["whatif", str(first), "--try", pair.second.knobs, "--repeats", str(repeats), "--out", out]
        if (code := llumnix(words)) not in (0, 3):
            raise SystemExit(code)
        found = msgspec.json.decode((Path(out) / WHATIF_JSON).read_bytes(), type=WhatIf)
    stretch = longest_stretch(read_run(second))
    measured = numbers_of(stretch.requests, {request.id for request in stretch.requests if not request.error})[ALL]
    for prediction in found.tried[0].predictions:
        if prediction.metric.name in measured:
            yield Compared(pair, prediction, measured[prediction.metric.name])


def _print(pair: Pair, rows: list[Compared]) -> None:
    table = Table("", "predicted", "bar", "measured", "", title=str(pair), title_justify="left")
    for row in rows:
        predicted = row.prediction
        if predicted.value is None or predicted.low is None or predicted.high is None:
            table.add_row(predicted.metric.name, "withheld", predicted.why_withheld, f"{row.measured:.4g}", "")
            continue
        bar = f"{predicted.low:.4g} … {predicted.high:.4g}"
        judged = "in" if row.hit else "OUT"
        table.add_row(predicted.metric.name, f"{predicted.value:.4g}", bar, f"{row.measured:.4g}", judged)
    Console(width=140).print(table)


def _figures(pairs: list[Pair], compared: list[Compared], withheld: int) -> Iterator[Figure]:
    hits = 100 * sum(row.hit for row in compared) / len(compared) if compared else None
    yield Figure("measured in the predicted bars, all numbers of all pairs", hits, at_least(GOAL_PERCENT), "%")
    yield Figure("pairs", len(pairs))
    yield Figure("numbers that were predicted", len(compared))
    yield Figure("numbers that were withheld", withheld)
    times = [row for row in compared if row.measured > 0 and not row.prediction.metric.counts]
    if times:
        off = [abs(row.prediction.value / row.measured - 1) for row in times if row.prediction.value is not None]
        yield Figure("times, predicted off by (median)", 100 * statistics.median(off), unit="%")
        wide = [
            row.prediction.high / row.prediction.low
            for row in times
            if row.prediction.low is not None and row.prediction.high is not None
        ]
        yield Figure("times, upper end of a bar over its lower (median)", statistics.median(wide))
    for percentile, name in ((50, "P50"), (99, "P99"), (None, "counts")):
        some = [row for row in compared if row.prediction.metric.percentile == percentile]
        if some:
            yield Figure(f"in the bars, {name}", 100 * sum(row.hit for row in some) / len(some), unit="%")


if __name__ == "__main__":
    sys.exit(main())
