"""The story of one sequence of a request: what happened to it since it arrived, and where its time went.

A front end tells it as it happens, by its own clock in seconds, which never goes back. What it tells goes into the
journal, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from llumnix.control.orders import MoveOutcome
from llumnix.journal.entries import (
    DispatchNoted,
    EndNoted,
    FirstTokenNoted,
    JournalEntry,
    MoveNoted,
    OfRequest,
    ParkingNoted,
    PreemptionNoted,
    RefusalNoted,
    ReplayNoted,
    Spent,
    StayNoted,
)
from llumnix.journal.journal import Journal
from llumnix.policy.dispatch import DispatchReason
from llumnix.types import InstanceId

FIRST_KEPT, LAST_KEPT = 8, 56
"""Entries of one story; what is between them is left out."""

SHORTEST_BEGINNING = 6
"""Letters of an id that may stand for all of it."""

Part = Literal["placing_s", "queue_s", "prefill_s", "decode_s", "preempted_s", "moving_s", "replay_s"]


class RequestStory(msgspec.Struct, frozen=True, kw_only=True):
    """Of one sequence of a request, from its arrival until now or its end."""

    request: str
    """As its client was given it."""
    sequence: str
    """Its first id inside the engines."""
    ended: bool
    arrived_at_s: float = msgspec.field(name="arrived_at")
    """As the times of its entries."""
    latency_s: float
    """Since then."""
    spent: Spent
    """The same in parts."""
    entries: tuple[JournalEntry, ...]
    """Oldest first."""
    left_out: int
    """Entries in the middle that are not kept."""


def meant(request: str, known: Iterable[str]) -> list[str]:
    """The id itself where it is known; else what of it was written, from six letters on, may be the beginning of one:
    of two, if it fits more."""
    fit: list[str] = []
    for name in known:
        if name == request:
            return [name]
        if len(fit) < 2 and len(request) >= SHORTEST_BEGINNING and name.startswith(request) and name not in fit:
            fit.append(name)
    return fit


def stories_in(entries: Sequence[JournalEntry], request: str) -> list[RequestStory]:
    """Of the sequences of a request, or of two that may be meant, from entries that were written down, in their
    order."""
    names = meant(request, (entry.request for entry in entries if entry.request is not None))
    by_sequence: dict[str, list[JournalEntry]] = {}
    for entry in entries:
        if entry.request in names and entry.sequence is not None:
            by_sequence.setdefault(entry.sequence, []).append(entry)
    return [_read_back(sequence, tuple(told)) for sequence, told in by_sequence.items()]


def _read_back(sequence: str, entries: tuple[JournalEntry, ...]) -> RequestStory:
    """Of one that has not ended, no more is known than when it was placed."""
    end = entries[-1]
    assert end.request is not None
    if isinstance(end.what, EndNoted):
        latency_s, spent = end.what.latency_s, end.what.spent
    else:
        latency_s, spent = end.at_s - entries[0].at_s, Spent()
    return RequestStory(
        request=end.request,
        sequence=sequence,
        ended=isinstance(end.what, EndNoted),
        arrived_at_s=end.at_s - latency_s,
        latency_s=latency_s,
        spent=spent,
        entries=entries,
        left_out=0,
    )


class Story:
    """One that goes on."""

    __slots__ = (
        "_part",
        "_preempted_s",
        "_resumed_s",
        "_since_s",
        "arrived_at_s",
        "arrived_s",
        "decodes",
        "entries",
        "first_token",
        "instance",
        "journal",
        "left_out",
        "moves",
        "places",
        "preemptions",
        "prompt_tokens",
        "request",
        "sequence",
        "spent",
    )

    def __init__(self, journal: Journal, arrived_s: float, request: str, sequence: str, prompt_tokens: int) -> None:
        self.request = request
        self.sequence = sequence
        self.prompt_tokens = prompt_tokens
        self.arrived_s = arrived_s
        self.arrived_at_s = arrived_s + journal.since_s
        """As the times of its entries."""
        self.instance: InstanceId | None = None
        """Where it is."""
        self.places: list[InstanceId] = []
        """Where it was, in order; the last one, too."""
        self.moves = self.preemptions = 0
        self.first_token: FirstTokenNoted | None = None
        self.spent = Spent()
        self.entries: list[JournalEntry] = []
        self.left_out = 0
        self.decodes = False
        """Its next token is like its last one: nobody has to tell `token`."""
        self.journal = journal
        self._part: Part = "placing_s"
        self._since_s = arrived_s
        self._preempted_s: float | None = None
        self._resumed_s = 0.0

    # what happens

    def refused(self, at_s: float, status: int, why: str) -> None:
        """It never was with an instance, and will not be: nothing follows."""
        self._pass_to("placing_s", at_s)
        self._note(at_s, RefusalNoted(status), why)

    def dispatched(self, at_s: float, reason: DispatchReason) -> None:
        self._pass_to("queue_s", at_s)
        self._is_at(reason.chosen)
        self._note(at_s, DispatchNoted(self.prompt_tokens, reason))

    def scheduled(self, at_s: float) -> None:
        """Its engine took it from the queue, maybe again."""
        if self._part == "queue_s" or (self._part == "preempted_s" and self.first_token is None):
            self._pass_to("prefill_s", at_s)
        if self._preempted_s is not None:
            self._resumed_s = at_s

    def preempted(self, at_s: float) -> None:
        """Told with its next token: only then does anybody know."""
        if self._part in ("prefill_s", "decode_s"):
            self._pass_to("preempted_s", at_s)
            if self._preempted_s is None:
                self._preempted_s = self._resumed_s = self._since_s

    def token(self, at_s: float, cached_tokens: int = 0) -> None:
        """Its first one, or one after a preemption or a replay. Of others it need not be told."""
        if self._part == "queue_s":  # its engine keeps no times
            self._part = "prefill_s"
        if self._part != "decode_s":
            self._pass_to("decode_s", at_s)
        if self.first_token is None:
            spent = self.spent
            first = FirstTokenNoted(at_s - self.arrived_s, spent.queue_s, spent.prefill_s, cached_tokens)
            self.first_token = first
            self._note(at_s, first)
        if self._preempted_s is not None:
            waited_s, lost_s = self._resumed_s - self._preempted_s, at_s - self._preempted_s
            self.preemptions += 1
            self._note(at_s, PreemptionNoted(waited_s, lost_s))
            self._preempted_s = None
        self.decodes = True

    def moved(self, at_s: float, outcome: MoveOutcome, downtime_s: float | None) -> None:
        """`downtime_s`: with the first token from there; None if none came."""
        if downtime_s is not None and self._part == "decode_s":
            self._pass_to("moving_s", max(self._since_s, at_s - downtime_s))
            self._pass_to("decode_s", at_s)
        figures, order = outcome.figures, outcome.order
        what = MoveNoted(
            order.target,
            order.cause,
            order.move_id,
            figures.stages,
            figures.bytes_copied,
            figures.blocks_skipped,
            1e3 * figures.copy_s,
            1e3 * figures.handover_s,
            None if downtime_s is None else 1e3 * downtime_s,
        )
        self._note(at_s, what, order.reason)
        self.moves += 1
        self._is_at(order.target)

    def stayed(self, at_s: float, outcome: MoveOutcome) -> None:
        order = outcome.order
        what = StayNoted(order.target, order.cause, outcome.stayed, order.move_id, order.reason)
        self._note(at_s, what, outcome.why_not or "")

    def parked(self, at_s: float, why: str, last_token_s: float | None = None) -> None:
        self._interrupt(at_s, last_token_s)
        self._note(at_s, ParkingNoted(), why)

    def replayed(
        self, at_s: float, reason: DispatchReason, why: str, delivered_tokens: int, last_token_s: float | None = None
    ) -> None:
        self._interrupt(at_s, last_token_s)
        self._is_at(reason.chosen)
        self._note(at_s, ReplayNoted(delivered_tokens, reason), why)

    def ended(self, at_s: float, outcome: str, output_tokens: int, why: str = "") -> None:
        self._pass_to(self._part, at_s)
        what = EndNoted(outcome, self.prompt_tokens, output_tokens, self._since_s - self.arrived_s, self.spent)
        self._note(at_s, what, why)

    def told(self, at_s: float) -> RequestStory:
        """As far as it went; it does not end with this."""
        spent = msgspec.structs.replace(self.spent)
        setattr(spent, self._part, getattr(spent, self._part) + max(0.0, at_s - self._since_s))
        return RequestStory(
            request=self.request,
            sequence=self.sequence,
            ended=False,
            arrived_at_s=self.arrived_at_s,
            latency_s=at_s - self.arrived_s,
            spent=spent,
            entries=tuple(self.entries),
            left_out=self.left_out,
        )

    # how it is kept

    def _is_at(self, instance: InstanceId) -> None:
        self.instance = instance
        self.places.append(instance)

    def _interrupt(self, at_s: float, last_token_s: float | None) -> None:
        """No instance goes on with it: what was done since its last token is lost."""
        self.decodes = False
        self.instance = None
        self._preempted_s = None
        if self._part not in ("placing_s", "replay_s"):
            self._pass_to("replay_s", at_s if last_token_s is None else last_token_s)

    def _pass_to(self, part: Part, at_s: float) -> None:
        at_s = max(at_s, self._since_s)
        setattr(self.spent, self._part, getattr(self.spent, self._part) + at_s - self._since_s)
        self._part, self._since_s = part, at_s

    def _note(self, at_s: float, what: OfRequest, why: str = "") -> None:
        if len(self.entries) == FIRST_KEPT + LAST_KEPT:
            del self.entries[FIRST_KEPT]
            self.left_out += 1
        self.entries.append(self.journal.note(at_s, what, self.request, self.sequence, self.instance, why))
