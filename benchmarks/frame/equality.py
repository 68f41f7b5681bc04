"""Token equality: the same requests moved around while they stream, and left alone, must say the same.

Used by the tests, by `benchmarks/equality.py` and by `benchmarks/soak.py`.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, TypeVar

import aiohttp

from frame.admin import Admin
from frame.kinds import KINDS, SHARED, Kind, make
from frame.stream import Output, Said, id_of, stream

Result = TypeVar("Result")

LOGPROB_TOLERANCE = 2e-3
_RETRY_S = 0.05
_ATTEMPTS = 10
_LAST_MOVE = 120


@dataclass(slots=True)
class Moves:
    """How the moves of one request went."""

    made: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Row:
    """What came of all requests of one kind."""

    kind: str
    requests: int = 0
    moves: int = 0
    fewest_moves: int = 10**9
    tokens: int = 0
    differing_tokens: int = 0
    """Tokens that are not the same at the same place, missing and surplus ones included."""
    problems: list[str] = field(default_factory=list)
    """Everything else: errors, another text, another end, usage that does not add up, other logprobs."""
    refused: Counter[str] = field(default_factory=Counter)


async def compare(
    session: aiohttp.ClientSession,
    requests: int,
    *,
    seed: int,
    concurrency: int = 10,
    kinds: Iterable[str] = KINDS,
    most_moves: int = 8,
    most_tokens: int | None = None,
) -> list[Row]:
    """Runs `requests` requests twice, moved one to `most_moves` times and undisturbed, and compares token by token.
    `most_tokens`: shortens them, for engines that are slow."""
    rng = random.Random(seed)
    names = list(kinds)
    made = [make(names[number % len(names)], random.Random(rng.random())) for number in range(requests)]
    if most_tokens is not None:
        made = [kind.shortened(most_tokens) for kind in made]
    limit = asyncio.Semaphore(concurrency)
    made = await _all(limit, [with_stop(session, kind, number) for number, kind in enumerate(made)])
    instances = await Admin(session).running()
    last_move = _LAST_MOVE if most_tokens is None else min(_LAST_MOVE, most_tokens // 2)
    plans = [Plan(instances, random.Random(rng.random()), most_moves, last_move) for _ in made]
    moved = await _all(
        limit, [_moved_at_least_once(session, kind, f"moved-{seed}-{n}", plans[n]) for n, kind in enumerate(made)]
    )
    still = await _all(limit, [undisturbed(session, kind, f"still-{seed}-{n}") for n, kind in enumerate(made)])
    rows = {name: Row(name) for name in names}
    for kind, (output, moves), reference in zip(made, moved, still, strict=True):
        _judge(rows[kind.name], output, moves, reference)
    return [row for row in rows.values() if row.requests]


async def _all(limit: asyncio.Semaphore, work: list[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results, in order; at most as many at once as the limit allows."""

    async def one(coroutine: Coroutine[Any, Any, Result]) -> Result:
        async with limit:
            return await coroutine

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(coroutine)) for coroutine in work]
    return [task.result() for task in tasks]


async def with_stop(session: aiohttp.ClientSession, kind: Kind, number: int) -> Kind:
    if not kind.stop_after:
        return kind
    said = (await undisturbed(session, kind, f"probe-{number}-{id(kind)}")).sequences[0].text
    return replace(kind, body=kind.body | {"stop": [_stop_string(said, kind.stop_after)]})


def _stop_string(said: str, after: int) -> str:
    """Something that the text says for the first time at about character `after`."""
    for length in (2, 3, 4):
        for start in range(after, len(said) - length):
            piece = said[start : start + length]
            if piece.isascii() and piece.isprintable() and said.find(piece) == start:
                return piece
    return said[-2:]


def _salted(kind: Kind, name: str) -> dict[str, object]:
    # Else the second run would find the blocks of the first in the prefix cache, and nothing would be copied.
    return kind.body if kind.name == SHARED else kind.body | {"cache_salt": name}


async def undisturbed(session: aiohttp.ClientSession, kind: Kind, name: str) -> Output:
    return await stream(session, kind.path, _salted(kind, name), name=name)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a request is to be moved around."""

    instances: list[str]
    rng: random.Random
    most_moves: int = 8
    last_move: int = _LAST_MOVE
    """Tokens at the latest one."""

    def moments(self) -> list[int]:
        """Move when the first sequence has this many tokens; 0 is before its first one, queue and prefill included."""
        return sorted(
            self.rng.choice((0, self.rng.randint(1, self.last_move)))
            for _ in range(self.rng.randint(1, self.most_moves))
        )


async def _moved_at_least_once(
    session: aiohttp.ClientSession, kind: Kind, name: str, plan: Plan
) -> tuple[Output, Moves]:
    """On a busy machine a short stream may be over before its first move is carried out: then once more."""
    for attempt in range(_ATTEMPTS):
        output, moves = await moving(session, kind, f"{name}-{attempt}", plan)
        if moves.made or output.error:
            break
    return output, moves


async def moving(session: aiohttp.ClientSession, kind: Kind, name: str, plan: Plan) -> tuple[Output, Moves]:
    """Streams the request and moves it between random instances at random moments."""
    mover = _Mover(Admin(session), id_of(kind.path, name), plan)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(mover.run())
        output = await stream(session, kind.path, _salted(kind, name), name=name, on_piece=mover.saw)
        mover.ended()
        await task
    return output, mover.moves


@dataclass(slots=True)
class _Mover:
    admin: Admin
    request: str
    plan: Plan
    moves: Moves = field(default_factory=Moves)
    tokens: int = 0
    over: bool = False
    progress: asyncio.Event = field(default_factory=asyncio.Event)

    def saw(self, output: Output) -> None:
        self.tokens = max((len(sequence.tokens) for sequence in output.sequences.values()), default=0)
        self.progress.set()

    def ended(self) -> None:
        self.over = True
        self.progress.set()

    async def run(self) -> None:
        place = self.plan.rng.choice(self.plan.instances)
        for moment in self.plan.moments():
            while self.tokens < moment and not self.over:
                self.progress.clear()
                await self.progress.wait()
            place = await self._move_from(place)

    async def _move_from(self, place: str) -> str:
        """Moves to another instance, and asks until it is there or the stream has ended. Returns where it is."""
        target = self.plan.rng.choice([instance for instance in self.plan.instances if instance != place])
        while not self.over:
            status, answer = await self.admin.migrate(self.request, target)
            if status == 200:
                self.moves.made += 1
                break
            if answer["reason"] == f"The request is on {target} already.":
                return await self._move_from(target)
            self.moves.refused[gist(answer["reason"])] += 1
            await asyncio.sleep(_RETRY_S)
        return target


def gist(reason: str) -> str:
    """The reason without names and numbers, to count by."""
    return re.sub(r"\d+(\.\d+)?", "#", re.sub(r"\bi\d+\b", "INSTANCE", re.sub(r"'[^']*'", "ID", reason)))


def assert_moved(rows: list[Row]) -> None:
    """Streams that never moved prove nothing. On a busy machine one may end before its order arrives; not many."""
    still = [row.kind for row in rows if row.fewest_moves == 0]
    assert len(still) <= len(rows) // 5, f"these never moved: {still}"


def _judge(row: Row, output: Output, moves: Moves, reference: Output) -> None:
    row.requests += 1
    row.moves += moves.made
    row.fewest_moves = min(row.fewest_moves, moves.made)
    row.refused += moves.refused
    row.tokens += reference.tokens
    for which, one in (("moved", output), ("undisturbed", reference)):
        if not one.complete:
            row.problems.append(f"{which} {one.id} did not end well: {one.error or 'no finish reason'}")
        if one.usage_tokens is not None and one.usage_tokens != one.tokens:
            row.problems.append(f"{which} {one.id} streamed {one.tokens} tokens and counts {one.usage_tokens}")
    for index in sorted({*output.sequences, *reference.sequences}):
        differing, problems = differences(output.sequences.get(index, Said()), reference.sequences.get(index, Said()))
        row.differing_tokens += differing
        row.problems += [f"{output.id} [{index}]: {problem}" for problem in problems]


def differences(one: Said, other: Said) -> tuple[int, list[str]]:
    differing = [at for at, (a, b) in enumerate(zip_longest(one.tokens, other.tokens)) if a != b]
    problems = [f"tokens differ first at {differing[0]} of {len(other.tokens)}"] if differing else []
    if one.text != other.text:
        problems.append("the text differs")
    if (one.finish_reason, one.stop_reason) != (other.finish_reason, other.stop_reason):
        problems.append(f"ends by {one.finish_reason}, {one.stop_reason}, not {other.finish_reason}")
    pairs = zip_longest(one.logprobs, other.logprobs, fillvalue=float("nan"))
    worst = max((abs((a or 0.0) - (b or 0.0)) for a, b in pairs), default=0.0)
    if not worst <= LOGPROB_TOLERANCE:
        problems.append(f"log probabilities differ by {worst:.2g}")
    return len(differing), problems
