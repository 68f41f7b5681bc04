"""Token equality, measured: streams that are moved about must say what undisturbed ones say.

    python benchmarks/equality.py --requests 200
    python benchmarks/equality.py --family sliding llava --requests 100

Starts two instances of the tiny model (or uses the server at --url, whose model must be called `tiny`), streams
requests of every kind that can move, each moved one to eight times at random moments while others run, then the
same ones undisturbed, and compares token by token. Exit code 1 if anything differs or anything is left behind.

With --family: the same for tiny models of other kinds (`families/table.py`), one after another, each moved one to six
times; then some requests with copies that are wrong on purpose, which must be seen. What is pinned is said, with its
reason.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from families.equality import Verdict, judge
from families.table import FAMILIES
from frame.arguments import at_least_one, whole
from frame.checked import USUAL_FLAGS, Server
from frame.equality import Row, compare
from frame.stream import open_session
from frame.verdict import Figure, at_least, at_most, conclude
from rich.console import Console
from rich.table import Table


def main() -> int:
    arguments = _parse()
    if arguments.family:
        return _families(arguments)
    began_s = time.monotonic()
    with _server(arguments) as url:
        rows = asyncio.run(_run(url, arguments))
    _print(rows)
    return conclude(
        Figure("requests", sum(row.requests for row in rows)),
        Figure("moves", sum(row.moves for row in rows)),
        Figure("tokens", sum(row.tokens for row in rows)),
        Figure("differing tokens", sum(row.differing_tokens for row in rows), at_most(0)),
        Figure("other problems", sum(len(row.problems) for row in rows), at_most(0)),
        Figure("all of it", time.monotonic() - began_s, unit="s"),
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=at_least_one, default=200)
    parser.add_argument("--concurrency", type=at_least_one, default=10, help="Streams at once. Default: 10.")
    parser.add_argument("--most-tokens", type=at_least_one, help="Of a stream. Default: 200 to 380, as it comes.")
    parser.add_argument("--seed", type=whole, default=1)
    parser.add_argument("--instances", type=at_least_one, default=2)
    parser.add_argument("--url", help="A server that runs; it must not move requests by itself.")
    parser.add_argument("--family", nargs="+", metavar="NAME", choices=[*FAMILIES, "all"], help=", ".join(FAMILIES))
    return parser.parse_args()


@contextmanager
def _server(arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.url:
        yield arguments.url
        return
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), *USUAL_FLAGS, instances=arguments.instances)
        try:
            yield server.url
            server.wait_until_quiet()
            if trouble := server.trouble():
                raise AssertionError("\n".join(trouble))
        finally:
            server.stop()


async def _run(url: str, arguments: argparse.Namespace) -> list[Row]:
    async with open_session(url) as session:
        return await compare(
            session,
            arguments.requests,
            seed=arguments.seed,
            concurrency=arguments.concurrency,
            most_tokens=arguments.most_tokens,
        )


def _print(rows: list[Row]) -> None:
    table = Table("kind", *("requests", "moves", "fewest", "tokens", "differing", "other problems"))
    for row in rows:
        table.add_row(row.kind, *map(str, _figures(row)))
    table.add_section()
    sums = [sum(column) for column in zip(*(_figures(row) for row in rows), strict=True)]
    sums[2] = min(row.fewest_moves for row in rows)
    table.add_row("all", *map(str, sums))
    console = Console()
    console.print(table)
    refused: Counter[str] = sum((row.refused for row in rows), Counter())
    for reason, count in refused.most_common():
        console.print(f"refused {count} times: {reason}", markup=False)
    for row in rows:
        for problem in row.problems:
            console.print(f"{row.kind}: {problem}", markup=False)


def _families(arguments: argparse.Namespace) -> int:
    names = list(FAMILIES) if "all" in arguments.family else arguments.family
    verdicts = []
    for name in names:
        folder = Path(tempfile.mkdtemp(prefix=f"family-{name}-"))
        verdict = judge(
            name,
            folder,
            requests=arguments.requests,
            seed=arguments.seed,
            concurrency=arguments.concurrency,
            most_tokens=arguments.most_tokens,
        )
        verdicts.append(verdict)
        if verdict.rows:
            _print(verdict.rows)
        if verdict.pinned:
            Console().print(f"{name}: pinned: {verdict.pinned}", markup=False)
        if verdict.broken:
            Console().print(f"{name}: {verdict.broken} (logs: {folder})", markup=False)
        else:
            shutil.rmtree(folder)
    return conclude(*(figure for verdict in verdicts for figure in _of_family(verdict)))


def _of_family(verdict: Verdict) -> list[Figure]:
    name = verdict.family
    if verdict.pinned:
        return [Figure(f"{name} (pinned: {verdict.pinned})", None)]
    drafts = [
        Figure(f"{name}: drafted tokens", verdict.drafted),
        Figure(f"{name}: accepted of them", verdict.accepted, at_least(1)),
    ]
    return [
        Figure(f"{name}: requests", sum(row.requests for row in verdict.rows)),
        Figure(f"{name}: moves", sum(row.moves for row in verdict.rows)),
        Figure(f"{name}: tokens", sum(row.tokens for row in verdict.rows)),
        Figure(f"{name}: differing tokens", verdict.differing_tokens, at_most(0)),
        Figure(f"{name}: other problems", len(verdict.problems), at_most(0)),
        Figure(f"{name}: wrong copies that were seen, of {verdict.controls}", verdict.seen, at_least(1)),
        *(drafts if FAMILIES[name].drafts else ()),
    ]


def _figures(row: Row) -> tuple[int, int, int, int, int, int]:
    return row.requests, row.moves, row.fewest_moves, row.tokens, row.differing_tokens, len(row.problems)


if __name__ == "__main__":
    sys.exit(main())
