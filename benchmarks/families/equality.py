"""A family's streams, moved about between two engines, beside undisturbed ones; and beside a copy that is wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
from frame.admin import Admin
from frame.checked import Server
from frame.equality import Plan, Row, compare, moving, undisturbed
from frame.kinds import make
from frame.stream import Streaming, open_session

from families.table import FAMILIES, engine_environment, engine_flags

MOST_MOVES = 6
_CONTROLS = 4
_FLAGS = ("--no-migration", "--max-num-batched-tokens", "512")
_WITH_TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
_WRONG_COPIES = {"LLUMNIX_FAULT": "zero-arrivals"}


@dataclass(slots=True)
class Verdict:
    family: str
    pinned: str = ""
    """Why its requests do not move, if they do not: then nothing else is known."""
    rows: list[Row] = field(default_factory=list)
    controls: int = 0
    """Requests that were moved with wrong copies, ..."""
    seen: int = 0
    """... and those among them whose output showed it."""
    drafted: int = 0
    """Tokens that were guessed, ..."""
    accepted: int = 0
    """... and those among them that were right."""
    broken: str = ""
    """What the server itself did wrong."""

    @property
    def differing_tokens(self) -> int:
        return sum(row.differing_tokens for row in self.rows)

    @property
    def problems(self) -> list[str]:
        found = [f"{row.kind}: {problem}" for row in self.rows for problem in row.problems]
        return [*found, *([self.broken] if self.broken else [])]


def judge(
    family: str,
    folder: Path,
    *,
    requests: int,
    seed: int,
    concurrency: int,
    most_tokens: int | None = None,
    flags: tuple[str, ...] = (),
) -> Verdict:
    """Runs two servers after each other, whose logs are in `folder`: one that copies rightly, and one that does not.

    `concurrency`: streams at once, of families that say the same whatever is beside them. `most_tokens`: shortens them.
    `flags`: of the servers, beyond the family's.
    """
    verdict = Verdict(family)
    concurrency = 1 if FAMILIES[family].alone else concurrency
    try:
        with _server(family, folder / "right", flags, {}) as server:
            asyncio.run(_compare(server, verdict, requests, seed, concurrency, most_tokens))
            server.wait_until_quiet()
            verdict.drafted, verdict.accepted = server.drafted(), server.drafted("accepted")
        if not verdict.pinned:
            with _server(family, folder / "wrong", flags, _WRONG_COPIES) as server:
                asyncio.run(_control(server, verdict, min(requests, _CONTROLS), seed, most_tokens))
    except* (AssertionError, TimeoutError, aiohttp.ClientError) as errors:
        verdict.broken = "; ".join(f"{type(error).__name__}: {error}" for error in leaves(errors))
    return verdict


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The exceptions that are no groups."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


@contextmanager
def _server(family: str, folder: Path, flags: tuple[str, ...], environment: dict[str, str]) -> Iterator[Server]:
    folder.mkdir(parents=True)
    tools = _WITH_TOOLS if "chat tool" in FAMILIES[family].kinds else ()
    model, *of_family = engine_flags(family)
    own = engine_environment(family)
    named = ("--model", model)  # by itself it could be a value of a flag that only another engine module knows
    server = Server(folder, *named, *_FLAGS, *tools, *of_family, *flags, environment=own | environment)
    try:
        yield server
        if trouble := server.trouble():
            raise AssertionError("\n".join(trouble))
    finally:
        server.stop()


async def _compare(
    server: Server, verdict: Verdict, requests: int, seed: int, concurrency: int, most_tokens: int | None
) -> None:
    kinds = FAMILIES[verdict.family].asked
    async with open_session(server.url) as session:
        kind = make(kinds[0], random.Random(seed))
        probe = Streaming(session, kind.body, name="probe", path=kind.path)
        await probe.reaches(1)
        rows = await Admin(session).requests()
        await probe.cancel()
        verdict.pinned = next((row.why_pinned or "" for row in rows if row.id == probe.id), "")
        if not verdict.pinned:
            verdict.rows = await compare(
                session,
                requests,
                seed=seed,
                concurrency=concurrency,
                kinds=kinds,
                most_moves=MOST_MOVES,
                most_tokens=most_tokens,
            )


async def _control(server: Server, verdict: Verdict, requests: int, seed: int, most_tokens: int | None) -> None:
    rng = random.Random(seed)
    kind = FAMILIES[verdict.family].kinds[0]
    async with open_session(server.url) as session:
        for number in range(requests):
            request = make(kind, rng)
            plan = Plan(["i0", "i1"], rng, most_moves=1)
            if most_tokens is not None:
                request, plan = request.shortened(most_tokens), replace(plan, last_move=most_tokens // 2)
            moved, moves = await moving(session, request, f"moved-{number}", plan)
            still = await undisturbed(session, request, f"still-{number}")
            verdict.controls += bool(moves.made)
            verdict.seen += bool(moves.made) and moved.sequences[0].tokens != still.sequences[0].tokens
