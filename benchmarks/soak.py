"""Mixed traffic for minutes or hours while things break; every stream must say what it says undisturbed.

    python benchmarks/soak.py --minutes 30 --seed 1
    python benchmarks/soak.py --minutes 5 --family qwen2-vl

Starts a server with the tiny model and streams requests of every kind (frame/kinds.py), some of which leave
in the middle, while instances are killed, stopped and drained, engines hang in processes that live, auto-scaling starts
and drains others, adapters are loaded and unloaded, the scheduler and front ends are killed, and running requests are
moved by hand. With --family: a tiny model of another kind (families/table.py), and what such models are asked, images
for example; adapters are left out. What is drawn follows from the seed; what the machine makes of it does not.

Exit code 1 if a token differs from the undisturbed run, a stream hangs, ends with an error that the documents do not
promise (docs/use/failures.md), or has a story that cannot be true (`_stories.py`: each has one, whose parts add up to
its length within 5 ms; each dispatch, move and replay is one event, and none is lost), if a block, process, socket,
file or shared memory is left, or memory or descriptors grow.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _adapters
import _faults
import aiohttp
import msgspec
from _adapters import Adapters
from _faults import Faults, plan
from _stories import TOLERANCE_S, Told, judge_stories
from _traffic import Piece, Soak, Tally
from _vitals import Vitals
from families.table import FAMILIES, engine_environment, engine_flags
from frame.admin import Admin
from frame.arguments import at_least_one, not_negative, positive, whole
from frame.checked import Server
from frame.equality import undisturbed, with_stop
from frame.kinds import KINDS, Kind, make
from frame.stream import open_session
from frame.verdict import Figure, at_most, conclude
from rich.console import Console
from rich.table import Table

from llumnix.report.records import MigrationRecord

CALM_DOWN_S = 60.0
"""After the last fault: until as many instances serve as in the beginning, and nothing is left on them."""
_SAMPLE_INTERVAL_S = 3.0
_MOST_GROWTH = 1.05
_MORE_DESCRIPTORS = 16
_FLAGS = (
    *("--max-num-batched-tokens", "512", "--max-model-len", "4096"),
    # The first request for logprobs compiles in the middle of a step: 6 to 10 s on a busy machine.
    *("--instance-timeout-s", "3", "--step-timeout-s", "20"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    # A tiny model's instances are never full: auto-scaling keeps as many as there were, whatever comes and goes.
    *("--scaling", "on", "--scale-out-freeness", "0.01", "--scale-in-freeness", "0.1", "--scale-window-s", "2"),
)
_EVENTS = {"dispatch": "dispatches", "moved": "moves", "stayed": "attempts to move", "replayed": "replays"}
_ROLES = ("launcher", "nursery", "scheduler", "front ends", "instances")


def main() -> int:
    arguments = _parse()
    before = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        size = ("--min-instances", str(arguments.instances), "--max-instances", str(arguments.instances + 2))
        decisions = Path(folder) / "decisions"
        model, environment = _engine(arguments.family)
        more = ("--api-server-count", str(arguments.front_ends), "--decision-log", str(decisions))
        flags = (*model, *_FLAGS, *size, *more)
        server = Server(Path(folder), *flags, instances=arguments.instances, recorded=False, environment=environment)
        vitals = Vitals(server.process.pid)
        try:
            soak, adapters = asyncio.run(_run(server, vitals, arguments))
            soak.violations += _what_is_left(server, vitals, arguments)
            moves = msgspec.convert(server.migrations(), list[MigrationRecord])
            try:
                server.stop()
            except AssertionError as error:
                soak.violations.append(str(error))
            told = judge_stories(decisions, moves, soak.surely_told)
            soak.violations += told.wrong
        except BaseException:
            print(server.logs())
            server.kill()
            raise
        if soak.violations:
            shutil.copytree(folder, arguments.logs, dirs_exist_ok=True, ignore=shutil.ignore_patterns("tmp"))
    soak.violations += [f"shared memory is left: {name}" for name in vitals.left_behind()]
    _tell(soak, vitals, arguments)
    refused = f"{adapters.refused} times it was refused or the front end died"
    print(f"{adapters.loads} adapters were loaded, used and unloaded; {refused}")
    if soak.violations:
        print(f"logs: {arguments.logs}")
    return _conclude(soak, told, time.monotonic() - before)


def _conclude(soak: Soak, told: Told, all_of_it_s: float) -> int:
    tallies = soak.tallies.values()
    return conclude(
        Figure("requests", sum(tally.requests for tally in tallies)),
        Figure("faults", sum(soak.faults.done.values())),
        Figure("moves by hand", soak.moves["moved"]),
        Figure("tokens", sum(tally.tokens for tally in tallies)),
        Figure("differing tokens", sum(tally.differing_tokens for tally in tallies), at_most(0)),
        Figure("stories told to their end", told.ended),
        *(Figure(f"{name} told", told.events[kind]) for kind, name in _EVENTS.items()),
        Figure("parts of a story: furthest from its length", 1e3 * told.furthest_s, at_most(1e3 * TOLERANCE_S), "ms"),
        Figure("told wrongly, or not", len(told.wrong), at_most(0)),
        Figure("hangs", soak.hangs, at_most(0)),
        Figure("violations", len(soak.violations), at_most(0)),
        Figure("all of it", all_of_it_s, unit="s"),
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=positive, default=30.0, help="Of traffic with faults. Default: 30.")
    parser.add_argument(
        "--warm-minutes", type=not_negative, help="Memory counts after these. Default: a fifth of --minutes."
    )
    parser.add_argument("--seed", type=whole, default=1, help="Of traffic and faults. Default: 1.")
    families = [name for name, family in FAMILIES.items() if not family.alone]
    parser.add_argument("--family", choices=families, metavar="NAME", help=f"One of {', '.join(families)}.")
    parser.add_argument("--instances", type=at_least_one, default=3, help="Default: 3.")
    parser.add_argument("--front-ends", type=at_least_one, default=2, help="Default: 2.")
    parser.add_argument("--clients", type=at_least_one, default=12, help="Streams at any time. Default: 12.")
    parser.add_argument("--variants", type=at_least_one, default=2, help="Different requests of each kind. Default: 2.")
    parser.add_argument("--logs", type=Path, default=Path("out/soak"), help="For what went wrong. Default: out/soak.")
    arguments = parser.parse_args()
    if arguments.warm_minutes is None:
        arguments.warm_minutes = arguments.minutes / 5
    return arguments


def _engine(family: str | None) -> tuple[Sequence[str], dict[str, str]]:
    """Its flags and environment."""
    if family is None:
        return _adapters.FLAGS, _adapters.ENVIRONMENT | _faults.ENVIRONMENT
    return engine_flags(family), engine_environment(family) | _faults.ENVIRONMENT


async def _run(server: Server, vitals: Vitals, arguments: argparse.Namespace) -> tuple[Soak, Adapters]:
    rng = random.Random(arguments.seed)
    names = FAMILIES[arguments.family].kinds if arguments.family else KINDS
    kinds = [make(name, random.Random(rng.random())) for name in names for _ in range(arguments.variants)]
    duration_s = arguments.minutes * 60
    faults = plan(random.Random(rng.random()), duration_s, arguments.front_ends)
    async with open_session(server.url) as session:
        admin = Admin(session)
        pieces = await _references(session, kinds)
        adapters = Adapters(server.folder, random.Random(rng.random()))
        if not arguments.family:
            await adapters.learn(session)
        began_s = time.monotonic()
        soak = Soak(pieces, Faults(server, admin, arguments.front_ends), began_s + duration_s)
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(_watch(vitals, began_s))
            group.create_task(soak.faults.run(faults))
            group.create_task(soak.mover(admin, random.Random(rng.random())))
            if not arguments.family:
                group.create_task(soak.adapter_user(session, adapters, random.Random(rng.random())))
            clients = [
                group.create_task(soak.client(session, random.Random(rng.random()), f"client-{number}"))
                for number in range(arguments.clients)
            ]
            await asyncio.gather(*clients)
            watch.cancel()
    return soak, adapters


async def _references(session: aiohttp.ClientSession, kinds: list[Kind]) -> list[Piece]:
    limit = asyncio.Semaphore(8)

    async def one(kind: Kind, number: int) -> Piece:
        async with limit:
            kind = await with_stop(session, kind, number)
            output = await undisturbed(session, kind, f"undisturbed-{number}")
        assert output.complete, f"{kind.name} fails undisturbed: {output.error}"
        return Piece(kind, output)

    return list(await asyncio.gather(*(one(kind, number) for number, kind in enumerate(kinds))))


async def _watch(vitals: Vitals, began_s: float) -> None:
    while True:
        await asyncio.to_thread(vitals.sample, time.monotonic() - began_s)
        await asyncio.sleep(_SAMPLE_INTERVAL_S)


def _what_is_left(server: Server, vitals: Vitals, arguments: argparse.Namespace) -> list[str]:
    """After the last stream has ended; what `Server.stop` finds afterwards is raised there."""
    violations: list[str] = []
    deadline_s = time.monotonic() + CALM_DOWN_S
    while len(server.instances("running", "starting", "draining")) != arguments.instances:
        if time.monotonic() > deadline_s:
            rows = [(row["id"], row["state"]) for row in server.instances("running", "starting", "draining")]
            violations.append(f"{arguments.instances} instances should serve, but there are {rows}")
            break
        time.sleep(0.2)
    try:
        server.wait_until_quiet(CALM_DOWN_S)
    except AssertionError as error:
        violations.append(str(error))
    vitals.sample(arguments.minutes * 60 + CALM_DOWN_S)
    violations += [f"in a log: {line}" for line in server.trouble()]
    first, last = vitals.growth(None, arguments.warm_minutes * 60, arguments.instances)
    if last > _MOST_GROWTH * first:
        violations.append(f"memory grew from {first:.0f} to {last:.0f} MiB")
    for pid, (then, now) in vitals.more_descriptors(arguments.warm_minutes * 60).items():
        if now > then + _MORE_DESCRIPTORS:
            violations.append(f"process {pid} had {then} descriptors and has {now}")
    return violations


def _tell(soak: Soak, vitals: Vitals, arguments: argparse.Namespace) -> None:
    console = Console(width=160)
    columns = ("requests", "whole", "left", "refused", "cut", "tokens", "differing")
    table = Table("kind", *columns)
    rows = [(name, _figures(tally)) for name, tally in sorted(soak.tallies.items())]
    for name, figures in rows:
        table.add_row(name, *map(str, figures))
    table.add_section()
    table.add_row("all", *(str(sum(column)) for column in zip(*(figures for _, figures in rows), strict=True)))
    console.print(table)
    for what, count in sorted(soak.faults.done.items()):
        console.print(f"{count} times: {what}")
    for outcome, count in soak.moves.most_common():
        console.print(f"{count} moves by hand: {outcome}", markup=False)
    warm_s = arguments.warm_minutes * 60
    for role in (*_ROLES, None):
        first, last = vitals.growth(role, warm_s, arguments.instances)
        growth = f"{last / first - 1:+.1%}" if first else "-"
        console.print(f"PSS of {role or 'all'}: {first:.0f} MiB after {warm_s:.0f} s, {last:.0f} at the end: {growth}")
    for violation in soak.violations:
        console.print(f"VIOLATION {violation}", markup=False)


def _figures(tally: Tally) -> tuple[Any, ...]:
    ends = (tally.requests, tally.whole, tally.left, tally.refused, tally.cut)
    return (*ends, tally.tokens, tally.differing_tokens)


if __name__ == "__main__":
    sys.exit(main())
