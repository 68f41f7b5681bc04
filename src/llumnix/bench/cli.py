"""`llumnix bench`: puts a workload on a running server and writes the records of the run."""

from __future__ import annotations

import argparse
import asyncio

from rich.console import Console
from rich.text import Text

from llumnix.bench.client import BenchConfig, bench
from llumnix.errors import refused_as
from llumnix.paths import a_path
from llumnix.plain import plain
from llumnix.remote import add_server_flags, check_key
from llumnix.report.pictures import HOW_TO_GET_IT, can_draw
from llumnix.report.records import write_records
from llumnix.report.summary import SUMMARY_JSON, print_summary, summarize, write_summary
from llumnix.workload.workload import load_workload

LATE_S = 0.1
"""A client that was later than this measured itself as well as the server."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `llumnix bench`."""
    parser.description = "Send a workload to an OpenAI-compatible server and record how it answers."
    add_server_flags(parser)
    parser.add_argument(
        "--workload", required=True, help="a generator with parameters, a trace by name, or a file: S-S?rate=4"
    )
    parser.add_argument("--out", required=True, type=a_path, help="directory for records, summary and pictures")
    parser.add_argument("--model", help="model to ask for (default: the first that the server names)")
    parser.add_argument("--rate", type=float, help="requests per second, instead of the workload's own")
    parser.add_argument("--requests", type=int, help="how many requests, instead of the workload's own")
    parser.add_argument("--seed", type=int, help="seed of all random numbers, instead of the workload's own")
    parser.add_argument("--time-scale", type=float, default=1.0, help="factor on arrival times (0.5: twice the rate)")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="seconds a request may take (default: 600)")
    parser.add_argument(
        "--tries", type=int, default=1, help="times a request that fails is asked in all, after 0.5, 1, 2 … s (1)"
    )
    parser.add_argument("--vocab", type=int, default=256, help="prompts are made of token ids below this (256)")
    parser.add_argument("--text", action="store_true", help="prompts as text, a character for each of these ids")
    parser.add_argument("--tenant-header", default="", help="header that tells the tenant of a request, if it has one")
    parser.add_argument("--no-figures", action="store_true", help="write no pictures")


def run(args: argparse.Namespace) -> int:
    """Carries out `llumnix bench`.

    Returns 0; 1 if requests failed; 130 after Ctrl-C, with the records of what had ended. Raises UsageError for bad
    input and ServerRefused for a server that does not answer.
    """
    check_key(args.api_key)
    config = _config(args)
    workload = load_workload(args.workload, rate=args.rate, requests=args.requests, seed=args.seed)
    with refused_as(f"Cannot write to --out {args.out}"):
        args.out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    if workload.left_out:
        console.print(workload.left_out, markup=False, highlight=False, soft_wrap=True)
    result = asyncio.run(bench(workload, config, console))
    summary = summarize(result.records, result.facts)
    write_records(args.out, result.records)
    write_summary(args.out / SUMMARY_JSON, summary)
    if not args.no_figures and not can_draw():
        console.print(HOW_TO_GET_IT, markup=False)
    elif not args.no_figures:
        from llumnix.report.figures import draw  # matplotlib takes a second to load

        draw(result.records, args.out, title=f"{workload.name} on {config.base_url}")
    print_summary(summary)
    for kind, said in result.details.items():
        console.print(Text(plain(f"{kind}, for example: {said.strip()}")), soft_wrap=True)
    late_s = result.facts["client_late_s"]
    if isinstance(late_s, float) and late_s > LATE_S:
        console.print(f"[yellow]The client was up to {late_s:.2f} s late in sending; latencies include that.[/]")
    if result.interrupted:
        return 130
    return 1 if summary.requests.failed else 0


def _config(args: argparse.Namespace) -> BenchConfig:
    return BenchConfig(
        url=args.url,
        model=args.model,
        api_key=args.api_key,
        time_scale=args.time_scale,
        timeout_s=args.timeout_s,
        tries=args.tries,
        vocab=args.vocab,
        text=args.text,
        tenant_header=args.tenant_header,
    )
