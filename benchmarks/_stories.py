"""Whether what a server wrote down of its requests can be true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from llumnix.decision_log import read_log
from llumnix.journal.entries import DispatchNoted, EndNoted, JournalEntry, MoveNoted

TOLERANCE_S = 0.005


def wrong_stories(log: Path) -> tuple[int, list[str]]:
    """How many sequences ended by the decision log of a server, and what is wrong with any of them. One whose front end
    was killed has no end."""
    stories: dict[str, list[JournalEntry]] = {}
    for entry in read_log(log):
        if entry.sequence is not None:
            stories.setdefault(entry.sequence, []).append(entry)
    wrong = [f"{sequence}: {what}" for sequence, entries in stories.items() for what in _wrong(entries)]
    return sum(isinstance(entries[-1].what, EndNoted) for entries in stories.values()), wrong


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
