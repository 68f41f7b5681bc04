"""Whether what a server wrote down of its requests can be true."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence, Set
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

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


_RESTARTED = 100_000
"""A process that takes the place of a dead one begins so much further on, at the least (decision_log.py)."""


class Told(NamedTuple):
    """What a decision log tells, and what of it cannot be true."""

    ended: int
    """Sequences that are told to their end."""
    events: Counter[str]
    """By kind."""
    furthest_s: float
    """By which the parts of a story miss its length, at the most."""
    wrong: list[str]


def judge_stories(log: Path, moves: Sequence[MigrationRecord], streamed: Set[str]) -> Told:
    """Of the decision log of a server. One whose front end was killed has no end. `moves`: what the front ends that
    live recorded of them, beside their stories; `streamed`: ids of requests that came to their ends."""
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
    ends = [told for told in stories.values() if isinstance(told[-1].what, EndNoted)]
    untold = streamed - {told[-1].request for told in ends}
    wrong += [f"{request}: it came to its end, which is not told" for request in sorted(untold)]
    return Told(
        ended=len(ends),
        events=Counter(entry.kind for entry in entries),
        furthest_s=max((abs(_missed_s(told)) for told in ends), default=0.0),
        wrong=[*wrong, *_told_otherwise(entries, moves), *_lost(entries)],
    )


def _wrong(entries: list[JournalEntry]) -> Iterator[str]:
    kinds = Counter(entry.kind for entry in entries)
    if kinds["dispatch"] != 1 or kinds["first_token"] > 1 or kinds["ended"] > 1:
        yield f"it has {dict(kinds)}"
    moves = Counter(entry.what.move_id for entry in entries if isinstance(entry.what, MoveNoted))
    yield from (f"{move} is told {count} times" for move, count in moves.items() if count > 1)
    end = entries[-1].what
    if kinds["ended"] and not isinstance(end, EndNoted):
        yield "something follows its end"
    if isinstance(end, EndNoted) and abs(missed_s := _missed_s(entries)) > TOLERANCE_S:
        parts_s = end.spent.total_s
        yield f"it lasted {parts_s - missed_s:.3f} s, and its parts {parts_s:.3f} s"


def _missed_s(entries: list[JournalEntry]) -> float:
    """What the parts of a story are longer than the story."""
    first, end = entries[0], entries[-1]
    if not (isinstance(first.what, DispatchNoted) and isinstance(end.what, EndNoted)):
        return 0.0
    return end.what.spent.total_s - end.what.spent.placing_s - (end.at_s - first.at_s)


def _lost(entries: Sequence[JournalEntry]) -> Iterator[str]:
    """Each process numbers what it notes."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for entry in entries:
        numbers[entry.by].append(entry.seq)
    for by, seen in numbers.items():
        for before, after in pairwise(sorted(seen)):
            if before == after:
                yield f"{by} tells its entry {after} twice"
            elif 1 < after - before < _RESTARTED:
                yield f"{by} tells nothing between its entries {before} and {after}"


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
