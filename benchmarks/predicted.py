"""Predicted beside measured: a live server, and the simulator with the profile that was measured of that server.

    python benchmarks/predicted.py --rates 2,3,4 --out DIR

Starts two instances of the tiny model with little memory, measures their profile (`llumnix profile`), sends them one
load per rate (`llumnix bench`), and simulates the very same requests (`llumnix simulate --compare`). Prints one column
of errors per rate, relative to what was measured. With --again the server gets each load twice, and more columns tell
how much two runs of the same requests differ: nobody can predict better than that. Exit code 1 if a goal is missed:
TTFT and TPOT within 10 % at P50 and 25 % at P99, preemptions within 20 %.

Each step lasts as if every instance had a device of its own (--step-ms, --token-ms; with zeros they share the cores).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from frame.arguments import folder, numbers, whole
from frame.models import add_pace_flags, paced_engine_flags
from frame.server import llumnix_server
from frame.verdict import Figure, at_most, conclude
from rich.console import Console
from rich.table import Table

from llumnix.cli import main as llumnix
from llumnix.report.records import read_records
from llumnix.sim.compare import Comparison, compare

WORKLOAD = "gamma:rate={rate},cv=3,prompt=zipf128,output=zipf256,cap=600,requests=250,seed={seed}"
NAMES = ("live", "again")
INSTANCES = 2
KV_MIB, BLOCK_BYTES = 12, 128 << 10  # 96 blocks of 32 tokens, 4 KiB each
SEQUENCES, BATCHED_TOKENS = 64, 512
PROFILED = (
    *("--prompts", "16,64,128,256,512", "--batches", "1,2,4,8,12", "--contexts", "32,100", "--output-tokens", "64"),
    *("--block-bytes", str(BLOCK_BYTES), "--max-num-seqs", str(SEQUENCES)),
    *("--max-num-batched-tokens", str(BATCHED_TOKENS)),
)
GOALS = {"TTFT P50": 0.1, "TPOT P50": 0.1, "TTFT P99": 0.25, "TPOT P99": 0.25, "preemptions": 0.2}


def main() -> int:
    arguments = _parse()
    rates: tuple[float, ...] = arguments.rates
    flags = (
        "--no-enable-prefix-caching",
        *("--max-num-seqs", str(SEQUENCES), "--max-num-batched-tokens", str(BATCHED_TOKENS)),
    )
    profile = arguments.out / "profile.toml"
    arguments.out.mkdir(parents=True, exist_ok=True)
    pace = paced_engine_flags(arguments.step_ms, arguments.token_ms, max_model_len=2048, kv_mib=KV_MIB)
    with pace as engine_flags, llumnix_server(engine_flags, *flags, instances=INSTANCES) as server:
        _command("profile", "--url", server.url, "--out", str(profile), *PROFILED)
        for rate in rates:
            workload = arguments.workload.format(rate=rate, seed=arguments.seed)
            for name in NAMES[: 1 + arguments.again]:
                out = _records(arguments.out, name, rate)
                _command("bench", "--url", server.url, "--workload", workload, "--out", str(out))
    predicted = [(f"{rate:g}/s: predicted", _predict(arguments.out, rate, profile)) for rate in rates]
    again = [(f"{rate:g}/s: again", _compare_again(arguments.out, rate)) for rate in rates if arguments.again]
    _print(again)
    _print(predicted)
    return conclude(*(_figure(title, row) for title, rows in predicted for row in rows if row.name in GOALS))


def _figure(title: str, row: Comparison) -> Figure:
    """Without a goal where nothing was measured that could be off, as without preemptions."""
    if row.error is None:
        return Figure(f"{title}: {row.name}, off by", None)
    return Figure(f"{title}: {row.name}, off by", 100 * abs(row.error), at_most(100 * GOALS[row.name]), "%")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--rates", type=numbers, default="2,3,4", help="Requests/s, with commas between. Default: 2,3,4."
    )
    parser.add_argument("--workload", default=WORKLOAD, help=f"With {{rate}} and {{seed}}. Default: {WORKLOAD}")
    parser.add_argument("--seed", type=whole, default=1)
    add_pace_flags(parser)
    parser.add_argument("--again", action="store_true", help="Each load twice: how much do two live runs differ?")
    parser.add_argument("--out", type=folder, required=True, help="Folder for profile, records and predictions.")
    return parser.parse_args()


def _command(*words: str) -> None:
    """A command of `llumnix`, as a user would call it."""
    if code := llumnix(list(words)):
        raise SystemExit(code)


def _records(out: Path, name: str, rate: float) -> Path:
    return out / f"{name}-{rate:g}"


def _compare_again(out: Path, rate: float) -> list[Comparison]:
    first, second = (read_records(_records(out, name, rate)) for name in NAMES)
    return compare(first, second)


def _predict(out: Path, rate: float, profile: Path) -> list[Comparison]:
    live, simulated = _records(out, "live", rate), _records(out, "simulated", rate)
    count = ("--instances", str(INSTANCES))
    _command("simulate", "--compare", str(live), "--profile", str(profile), "--out", str(simulated), *count)
    return compare(read_records(live), read_records(simulated))


def _print(columns: list[tuple[str, list[Comparison]]]) -> None:
    if not columns:
        return
    table = Table("", *(f"{title} / measured" for title, _ in columns), "goal")
    for rows in zip(*(rows for _, rows in columns), strict=True):
        goal = GOALS.get(rows[0].name)
        table.add_row(rows[0].name, *map(_cell, rows), "" if goal is None else f"{goal:.0%}")
    Console().print(table)


def _cell(row: Comparison) -> str:
    if row.predicted is None or row.measured is None:
        return "–"
    error = "" if row.error is None else f" ({row.error:+.1%})"
    return f"{row.predicted:.4g} / {row.measured:.4g} {row.unit}{error}"


if __name__ == "__main__":
    sys.exit(main())
