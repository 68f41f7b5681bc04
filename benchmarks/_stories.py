"""Whether what a server wrote down of its requests can be true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from llumnix.decision_log import read_log
from llumnix.journal.entries import (
    DispatchNoted,
    DrainNoted,
    EndNoted,
    FirstTokenNoted,
    InstanceNoted,
    JournalEntry,
    MoveNoted,
    ReplayNoted,
    StayNoted,
)
from llumnix.report.records import MigrationRecord
from llumnix.types import InstanceId

TOLERANCE_S = 0.005
SOON_S = 5.0
"""Until then whoever was on an instance that was lost goes on elsewhere."""


def wrong_stories(log: Path, moves: Sequence[MigrationRecord]) -> tuple[int, list[str]]:
    """How many sequences ended by the decision log of a server, and what is wrong with any of them. One whose front end
    was killed has no end. `moves`: what the front ends that live recorded of them, beside their stories."""
    entries = read_log(log)
    stories: dict[str, list[JournalEntry]] = {}
    for entry in entries:
        if entry.sequence is not None:
            stories.setdefault(entry.sequence, []).append(entry)
    fates = _Fates(entries)
    wrong = [
        f"{sequence}: {what}"
        for sequence, told in stories.items()
        for what in (*_wrong(told), *fates.wrong_replays(told))
    ]
    ended = sum(isinstance(told[-1].what, EndNoted) for told in stories.values())
    return ended, [*wrong, *_told_otherwise(entries, moves)]


def _wrong(entries: list[JournalEntry]) -> Iterator[str]:
    kinds = Counter(entry.kind for entry in entries)
    if kinds["dispatch"] != 1 or kinds["first_token"] > 1 or kinds["ended"] > 1:
        yield f"it has {dict(kinds)}"
    moves = Counter(entry.what.move_id for entry in entries if isinstance(entry.what, MoveNoted))
    yield from (f"{move} is told {count} times" for move, count in moves.items() if count > 1)
    end = entries[-1].what
    if kinds["ended"] and not isinstance(end, EndNoted):
        yield "something follows its end"
    if isinstance(end, EndNoted) and isinstance(entries[0].what, DispatchNoted):
        felt_s = entries[-1].at_s - entries[0].at_s + end.spent.placing_s
        if abs(end.spent.total_s - felt_s) > TOLERANCE_S:
            yield f"it lasted {felt_s:.3f} s, and its parts {end.spent.total_s:.3f} s"


def _told_otherwise(entries: Sequence[JournalEntry], moves: Sequence[MigrationRecord]) -> Iterator[str]:
    """Each recorded attempt is one event, of the same outcome."""
    told = Counter(
        (entry.request, entry.what.move_id, entry.kind)
        for entry in entries
        if isinstance(entry.what, MoveNoted | StayNoted)
    )
    recorded = Counter(
        (move.request_id, move.move_id, "moved" if move.stayed_by is None else "stayed") for move in moves
    )
    for (request, move, outcome), count in recorded.items():
        if (events := told[request, move, outcome]) != count:
            yield f"{request}: {move} is recorded {count} times as {outcome}, and told {events} times"


class _Fates:
    """What became of the instances."""

    def __init__(self, entries: Sequence[JournalEntry]) -> None:
        self._gone_s: dict[InstanceId, float] = {}
        self._drained: set[InstanceId] = set()
        self._worked_s: dict[InstanceId, float] = {}
        """When a request last had its first token there."""
        for entry in entries:
            if entry.instance is None:
                continue
            match entry.what:
                case InstanceNoted(serves=False):
                    self._gone_s.setdefault(entry.instance, entry.at_s)
                case DrainNoted():
                    self._drained.add(entry.instance)
                case FirstTokenNoted():
                    self._worked_s[entry.instance] = max(entry.at_s, self._worked_s.get(entry.instance, 0.0))
                case _:
                    pass

    def wrong_replays(self, entries: list[JournalEntry]) -> Iterator[str]:
        """Who was on an instance that was lost has gone on elsewhere, once; nobody else has."""
        here: InstanceId | None = None
        for entry in entries:
            match entry.what:
                case DispatchNoted():
                    here = entry.instance
                case MoveNoted(target=target):
                    here = target
                case ReplayNoted():
                    if here is not None and here not in self._drained and self._worked_s.get(here, 0.0) > entry.at_s:
                        yield f"it was replayed from {here}, which worked on"
                    here = entry.instance
                case _:
                    pass
        end = entries[-1]
        if here is not None and isinstance(end.what, EndNoted) and end.at_s > self._gone_s.get(here, end.at_s) + SOON_S:
            yield f"it was on {here}, which was lost long before its end"
