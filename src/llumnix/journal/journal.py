"""The journal of one process: a bounded ring of entries, the latest ones; and cursors over the journals of several."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import msgspec

from llumnix.journal.entries import AnyNoted, JournalEntry
from llumnix.types import InstanceId

KEPT = 10_000
"""Entries that a process keeps, some 6 MB."""

CLOCK_SET_S = 0.5
"""A clock that differs by more from what it was has been set; less is what two readings of clocks are apart."""


class EntryFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries somebody wants: those that fit all of it."""

    kinds: tuple[str, ...] = ()
    """Of one of these; none: of any."""
    instance: InstanceId | None = None
    """About it, also as the target of a move."""

    def takes(self, entry: JournalEntry) -> bool:
        if self.kinds and entry.kind not in self.kinds:
            return False
        return self.instance in (None, entry.instance, getattr(entry.what, "target", None))


ALL_ENTRIES = EntryFilter()


class JournalPart(msgspec.Struct, frozen=True, kw_only=True):
    """Of one journal, what follows a place in it."""

    by: str
    entries: tuple[JournalEntry, ...]
    next: int
    """Where to go on: behind `entries`, and what was looked at and not wanted."""
    lost: int
    """Entries in between that are not kept any more."""


class Journal:
    """`by` names the process. One that takes the place of a dead one begins with a larger `first` than that one
    came to. `since_s` is added to every time: what the clock of those who note is behind the one that is told. That one
    may be set: `clock_s` says what it is just now."""

    def __init__(
        self,
        by: str,
        first: int = 1,
        since_s: float = 0.0,
        keep: int = KEPT,
        listener: Callable[[JournalEntry], None] | None = None,
        clock_s: Callable[[], float] | None = None,
    ) -> None:
        """`listener` is told of every entry, and must be quick."""
        self.by = by
        self.listener = listener
        self._first = self._next = first
        self._since_s = since_s
        self._clock_s = clock_s
        self._at_s = 0.0
        self._entries: deque[JournalEntry] = deque(maxlen=keep)

    def note(
        self,
        at_s: float,
        what: AnyNoted,
        request: str | None = None,
        sequence: str | None = None,
        instance: InstanceId | None = None,
        why: str = "",
    ) -> JournalEntry:
        at_s += self.since_s
        self._at_s = max(self._at_s, at_s)
        entry = JournalEntry(self._at_s, self.by, self._next, what, request, sequence, instance, why)
        self._next += 1
        self._entries.append(entry)
        if self.listener is not None:
            self.listener(entry)
        return entry

    @property
    def since_s(self) -> float:
        if self._clock_s is not None and abs((since_s := self._clock_s()) - self._since_s) > CLOCK_SET_S:
            self._since_s = since_s
            self._at_s = 0.0
        return self._since_s

    def read(self, places: dict[str, int] | None, limit: int, wanted: EntryFilter) -> JournalPart:
        """What follows the reader's place in this journal; for one who has none, what happened last."""
        place = None if places is None else places.get(self.by)
        return self.newest(limit, wanted) if place is None else self.after(place, limit, wanted)

    def after(self, seq: int, limit: int = KEPT, wanted: EntryFilter = ALL_ENTRIES) -> JournalPart:
        """At most `limit` wanted entries behind the one of this number, oldest first."""
        oldest = self._next - len(self._entries)
        begin = min(max(seq + 1, oldest), self._next)
        found: list[JournalEntry] = []
        last = self._next - 1
        for entry in islice(self._entries, begin - oldest, None):
            if len(found) == limit:
                last = entry.seq - 1
                break
            if wanted.takes(entry):
                found.append(entry)
        lost = begin - max(seq + 1, self._first)
        return JournalPart(by=self.by, entries=tuple(found), next=last, lost=max(0, lost))

    def newest(self, limit: int, wanted: EntryFilter = ALL_ENTRIES) -> JournalPart:
        """The last `limit` wanted ones, oldest first."""
        found = list(islice(filter(wanted.takes, reversed(self._entries)), limit))
        return JournalPart(by=self.by, entries=tuple(reversed(found)), next=self._next - 1, lost=0)


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Of several journals, what follows a reader's places in them."""

    entries: tuple[JournalEntry, ...]
    """By time."""
    places: dict[str, int]
    """Where to go on."""
    lost: int
    """Entries in between that are not kept any more."""


def by_time(journals: Iterable[Iterable[JournalEntry]]) -> list[JournalEntry]:
    """Each journal in its own order, also where its clock was set back: a place is behind all before it."""
    return list(heapq.merge(*journals, key=lambda entry: (entry.at_s, entry.by)))


def read_together(places: dict[str, int] | None, parts: Sequence[JournalPart], limit: int) -> Reading:
    """Of what each journal answered to the same reader, the first `limit` entries, or for one who has no places the
    last. The place in a journal that did not answer stays."""
    entries = by_time(part.entries for part in parts)
    shown = entries[:limit] if places is not None else entries[-limit:]
    reached = (places or {}) | {part.by: part.next for part in parts}
    if places is not None:
        for entry in reversed(entries[limit:]):
            reached[entry.by] = entry.seq - 1
    return Reading(entries=tuple(shown), places=reached, lost=sum(part.lost for part in parts))


def show_cursor(places: dict[str, int]) -> str:
    """Where somebody is in several journals, in one word: `f0.18231-f1.990`."""
    return "-".join(f"{by}.{seq}" for by, seq in sorted(places.items()))


def read_cursor(text: str) -> dict[str, int]:
    """Raises ValueError for what is none."""
    places: dict[str, int] = {}
    for part in text.split("-") if text else ():
        by, dot, seq = part.partition(".")
        if not (by.isascii() and by.isalnum() and dot and seq.isascii() and seq.isdecimal() and len(seq) < 18):
            raise ValueError(f"{part!r} is no place in a journal")
        places[by] = int(seq)
    return places
