"""The traffic of a soak: clients that stream, leave, load adapters and move requests; and what was wrong."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
from _adapters import Adapters
from _faults import Faults
from frame.admin import Admin
from frame.equality import differences, gist
from frame.kinds import SHARED, Kind
from frame.stream import Output, Said, stream

STREAM_DEADLINE_S = 90.0
_LEAVING = 0.1
_MOVE_INTERVAL_S = 0.3
_WRITTEN_IN_S = 2.0
"""A decision log, after the end of a stream, however busy the machine is."""


class Left(Exception):
    """The client cuts its stream off here, on purpose."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One of the requests that the traffic is made of, and what it says undisturbed."""

    kind: Kind
    reference: Output


@dataclass(slots=True)
class Tally:
    requests: int = 0
    whole: int = 0
    left: int = 0
    refused: int = 0
    """503: there was no instance just then."""
    cut: int = 0
    """The front end that it went through was killed."""
    tokens: int = 0
    differing_tokens: int = 0


@dataclass(slots=True)
class Soak:
    pieces: list[Piece]
    faults: Faults
    ends_s: float
    tallies: dict[str, Tally] = field(default_factory=dict)
    moves: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    hangs: int = 0
    ended_s: dict[str, float] = field(default_factory=dict)
    """Streams that came whole, by their ids, on the monotonic clock."""

    @property
    def surely_told(self) -> set[str]:
        """Ids of streams that came whole, unless a front end was killed before it may have written that down."""
        deaths_s = self.faults.front_end_deaths_s
        return {
            name
            for name, end_s in self.ended_s.items()
            if not any(end_s <= death_s <= end_s + _WRITTEN_IN_S for death_s in deaths_s)
        }

    async def client(self, session: aiohttp.ClientSession, rng: random.Random, name: str) -> None:
        number = 0
        while time.monotonic() < self.ends_s:
            piece = rng.choice(self.pieces)
            leaves_at = rng.randint(1, 150) if rng.random() < _LEAVING else None
            await self._one(session, piece, f"{name}-{number}", leaves_at)
            number += 1

    async def _one(self, session: aiohttp.ClientSession, piece: Piece, name: str, leaves_at: int | None) -> None:
        tally = self.tallies.setdefault(piece.kind.name, Tally())
        tally.requests += 1
        began_s = time.monotonic()
        seen = Output()

        def on_piece(output: Output) -> None:
            nonlocal seen
            seen = output
            if leaves_at is not None and output.tokens >= leaves_at:
                raise Left

        body = piece.kind.body if piece.kind.name == SHARED else piece.kind.body | {"cache_salt": name}
        try:
            async with asyncio.timeout(STREAM_DEADLINE_S):
                seen = await stream(session, piece.kind.path, body, name=name, on_piece=on_piece)
        except Left:
            tally.left += 1
        except TimeoutError:
            self.hangs += 1
            until = f"{seen.tokens} tokens in {STREAM_DEADLINE_S:g} s until {time.strftime('%X')}"
            self.violations.append(f"{name} ({piece.kind.name}) hangs: {until}")
        except aiohttp.ClientError as error:
            if any(death_s >= began_s - 1.0 for death_s in self.faults.front_end_deaths_s):
                tally.cut += 1
            else:
                self.violations.append(f"{name} ({piece.kind.name}): {type(error).__name__}: {error}")
        else:
            await self._ended(tally, piece, seen, name)
        self._compare_tokens(tally, piece, seen, name)

    async def _ended(self, tally: Tally, piece: Piece, output: Output, name: str) -> None:
        if output.error.startswith("503: ") and "o instance " in output.error:
            tally.refused += 1
            await asyncio.sleep(1.0)  # what Retry-After says
        elif not output.complete:
            self.violations.append(f"{name} ({piece.kind.name}) did not end well: {output.error or 'no finish reason'}")
        else:
            tally.whole += 1
            self.ended_s[output.id] = time.monotonic()
            for index, whole in piece.reference.sequences.items():
                _, problems = differences(output.sequences.get(index, Said()), whole)
                self.violations += [f"{name} ({piece.kind.name}) [{index}]: {problem}" for problem in problems]

    def _compare_tokens(self, tally: Tally, piece: Piece, output: Output, name: str) -> None:
        """As far as they came, whatever became of the stream."""
        for index, sequence in output.sequences.items():
            whole = piece.reference.sequences[index].tokens
            said = sequence.tokens
            differing = sum(a != b for a, b in zip(said, whole, strict=False)) + max(0, len(said) - len(whole))
            tally.tokens += len(said)
            tally.differing_tokens += differing
            if differing:
                self.violations.append(f"{name} ({piece.kind.name}) [{index}]: {differing} tokens differ")

    async def adapter_user(self, session: aiohttp.ClientSession, adapters: Adapters, rng: random.Random) -> None:
        number = 0
        while time.monotonic() < self.ends_s:
            name = f"adapter-{number}"
            number += 1
            try:
                async with asyncio.timeout(STREAM_DEADLINE_S):
                    requests = await adapters.load(session, rng, name)
                pieces = [Piece(kind, said) for kind, said in requests]
                await asyncio.gather(
                    *(self._one(session, piece, f"{name}-{place}", None) for place, piece in enumerate(pieces))
                )
                async with asyncio.timeout(STREAM_DEADLINE_S):
                    await adapters.unload(session, name)
            except aiohttp.ClientError:  # the front end that was asked died
                adapters.refused += 1
            except TimeoutError:
                self.hangs += 1
                self.violations.append(f"{name}: to load or unload it was not answered")
            await asyncio.sleep(1.0)

    async def mover(self, admin: Admin, rng: random.Random) -> None:
        """Moves whatever runs to wherever it is not."""
        while time.monotonic() < self.ends_s:
            await asyncio.sleep(_MOVE_INTERVAL_S)
            try:
                async with asyncio.timeout(STREAM_DEADLINE_S):
                    await self._move_one(admin, rng)
            except aiohttp.ClientError:
                self.moves["the front end that was asked died"] += 1
            except TimeoutError:
                self.hangs += 1
                self.violations.append("a move by hand was not answered")

    async def _move_one(self, admin: Admin, rng: random.Random) -> None:
        rows = sorted((row.id, row.instance) for row in await admin.requests())
        instances = sorted(await admin.running())
        if not rows or len(instances) < 2:
            return
        request, place = rng.choice(rows)
        status, answer = await admin.migrate(request, rng.choice([each for each in instances if each != place]))
        outcome = "moved" if status == 200 else f"{status}: {gist(str(answer.get('reason', answer)))}"
        self.moves[outcome] += 1
        if status >= 500 and status != 504:
            self.violations.append(f"a move by hand was answered with {status}: {answer}")
