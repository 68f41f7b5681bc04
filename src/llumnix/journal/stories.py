"""The stories of a front end: of all sequences that it streams, and of the last ones that ended.

An ended one is kept encoded, in less than half the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import msgspec

from llumnix.journal.entries import AnyNoted, EndNoted, JournalEntry, Spent
from llumnix.journal.journal import Journal
from llumnix.journal.story import RequestStory, Story, meant
from llumnix.types import InstanceId

ENDED_KEPT = 20_000
"""Ended sequences whose stories are kept, the latest."""

ENDED_BYTES = 20 << 20
"""Of all of these."""


class Stories:
    """Of one front end. `began` is called for every sequence that arrives, `over` when it has ended."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.listener: Callable[[Story], None] | None = None
        """Told of every one that is over, and must be quick."""
        self._live: dict[str, Story] = {}
        self._ended: dict[str, bytes] = {}
        """By request, the sequences of each."""
        self._buffer = bytearray()
        self._sequences = self._bytes = 0

    def began(self, arrived_s: float, request: str, sequence: str, prompt_tokens: int) -> Story:
        story = self._live[sequence] = Story(self.journal, arrived_s, request, sequence, prompt_tokens)
        return story

    def over(self, story: Story) -> None:
        """It has `ended`: it is kept as long as there is room."""
        if self.listener is not None:
            self.listener(story)
        del self._live[story.sequence]
        before = self._ended.get(story.request, b"")
        _ENCODER.encode_into([*_decoded(before), _without_names(story)], self._buffer)
        kept = self._ended[story.request] = bytes(self._buffer)  # what `encode` returns has room for more
        self._sequences += 1
        self._bytes += len(kept) - len(before)
        while self._sequences > ENDED_KEPT or self._bytes > ENDED_BYTES:
            oldest = self._ended.pop(next(iter(self._ended)))
            self._sequences -= len(_decoded(oldest))
            self._bytes -= len(oldest)

    def of(self, request: str, at_s: float) -> list[RequestStory]:
        """Of a request's sequences, those that ended first; none if nobody knows it (any more). Of two requests, if
        what is given is the beginning of several ids."""
        live = (story.request for story in self._live.values())
        names = [request] if request in self._ended else meant(request, chain(live, self._ended))
        return [story for name in names for story in self._exactly(name, at_s)]

    def _exactly(self, request: str, at_s: float) -> list[RequestStory]:
        live = [story.told(at_s) for story in self._live.values() if story.request == request]
        ended = [self._told(request, each) for each in _decoded(self._ended.get(request, b""))]
        return ended + live

    @property
    def kept(self) -> int:
        """Ended sequences whose stories are known."""
        return self._sequences

    def _told(self, request: str, ended: _Ended) -> RequestStory:
        sequence = ended.sequence or request + ended.behind_request
        spent = Spent(*ended.spent)
        end = EndNoted(ended.outcome, ended.prompt_tokens, ended.output_tokens, spent.total_s, spent)
        entries = tuple(
            JournalEntry(row.at_s, self.journal.by, row.seq, row.what or end, request, sequence, row.instance, row.why)
            for row in ended.rows
        )
        return RequestStory(
            request=request,
            sequence=sequence,
            ended=True,
            arrived_at_s=ended.arrived_at_s,
            latency_s=spent.total_s,
            spent=spent,
            entries=entries,
            left_out=ended.left_out,
        )


class _Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An entry without what all of its story have."""

    at_s: float
    seq: int
    what: AnyNoted | None
    """None: its end."""
    instance: InstanceId | None
    why: str


class _Ended(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A story without the names of its fields, and without what its request's name says already."""

    behind_request: str
    sequence: str
    """Where it does not begin with the request's name."""
    arrived_at_s: float
    left_out: int
    rows: list[_Row]
    outcome: str
    prompt_tokens: int
    output_tokens: int
    spent: tuple[float, ...]


_ENDED = msgspec.msgpack.Decoder(list[_Ended])
_ENCODER = msgspec.msgpack.Encoder()


def _decoded(kept: bytes) -> list[_Ended]:
    return _ENDED.decode(kept) if kept else []


def _without_names(story: Story) -> _Ended:
    *before, last = story.entries
    end = last.what
    assert isinstance(end, EndNoted)
    rows = [_Row(entry.at_s, entry.seq, entry.what, entry.instance, entry.why) for entry in before]
    request, sequence = story.request, story.sequence
    is_longer = sequence.startswith(request)
    return _Ended(
        sequence.removeprefix(request) if is_longer else "",
        "" if is_longer else sequence,
        story.arrived_s + story.journal.since_s,
        story.left_out,
        [*rows, _Row(last.at_s, last.seq, None, last.instance, last.why)],
        end.outcome,
        end.prompt_tokens,
        end.output_tokens,
        msgspec.structs.astuple(end.spent),
    )
