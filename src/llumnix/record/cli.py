"""`llumnix record`: what to do with a recorded run."""

from __future__ import annotations

import argparse
from pathlib import Path

from llumnix.errors import UsageError
from llumnix.paths import a_path
from llumnix.record.export import FORMS, export
from llumnix.record.read import read_run

_SUFFIXES = {"mooncake": ".jsonl", "azure": ".csv"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `llumnix record`."""
    parser.description = "Hand on what `llumnix serve --record DIR` wrote down."
    parser.add_argument("action", choices=("export",), metavar="export", help="write its requests as a trace")
    parser.add_argument("folder", type=a_path, metavar="DIR", help="a recorded run, or a folder of them (the newest)")
    parser.add_argument("--format", choices=tuple(FORMS), required=True, help="the form of trace")
    parser.add_argument(
        "--out", type=a_path, metavar="FILE", help="where to (default: DIR/mooncake.jsonl, DIR/azure.csv)"
    )


def run(args: argparse.Namespace) -> int:
    """Carries out `llumnix record`. Returns 0; raises UsageError for bad input."""
    recorded = read_run(args.folder)
    suffix = _SUFFIXES[args.format]
    out: Path = args.out or recorded.folder / f"{args.format}{suffix}"
    if out.suffix != suffix:
        raise UsageError(f"--out {out} must end in {suffix}: by that --format {args.format} is known.")
    count = export(recorded, args.format, out)
    print(f"{count:,} requests in {out}")
    return 0
