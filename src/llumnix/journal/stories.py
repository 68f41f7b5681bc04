"""The stories of a front end: of all sequences that it streams, and of the last ones that ended.

An ended one is kept encoded, in less than half the memory.
"""

from __future__ import annotations

import msgspec

from llumnix.journal.entries import AnyNoted, EndNoted, JournalEntry
from llumnix.journal.journal import Journal
from llumnix.journal.story import RequestStory, Story
from llumnix.types import InstanceId

ENDED_KEPT = 20_000
"""Ended sequences whose stories are kept, the latest."""

ENDED_BYTES = 20 << 20
"""Of all of these."""


class Stories:
    """Of one front end. `began` is called for every sequence that arrives, `over` when it has ended."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._live: dict[str, Story] = {}
        self._ended: dict[str, tuple[bytes, ...]] = {}
        """By request."""
        self._sequences = self._bytes = 0

    def began(self, arrived_s: float, request: str, sequence: str, prompt_tokens: int) -> Story:
        story = self._live[sequence] = Story(self.journal, arrived_s, request, sequence, prompt_tokens)
        return story

    def over(self, story: Story) -> None:
        """It has `ended`: it is kept as long as there is room."""
        del self._live[story.sequence]
        kept = _encode(story)
        self._ended[story.request] = (*self._ended.get(story.request, ()), kept)
        self._sequences += 1
        self._bytes += len(kept)
        while self._sequences > ENDED_KEPT or self._bytes > ENDED_BYTES:
            oldest = self._ended.pop(next(iter(self._ended)))
            self._sequences -= len(oldest)
            self._bytes -= sum(map(len, oldest))

    def of(self, request: str, at_s: float) -> list[RequestStory]:
        """Of a request's sequences, those that ended first; none if nobody knows it (any more)."""
        live = [story.told(at_s) for story in self._live.values() if story.request == request]
        return [self._decode(kept) for kept in self._ended.get(request, ())] + live

    @property
    def kept(self) -> int:
        """Ended sequences whose stories are known."""
        return self._sequences

    def _decode(self, kept: bytes) -> RequestStory:
        ended = _ENDED.decode(kept)
        entries = tuple(
            JournalEntry(
                row.at_s, self.journal.by, row.seq, row.what, ended.request, ended.sequence, row.instance, row.why
            )
            for row in ended.rows
        )
        last = ended.rows[-1].what
        assert isinstance(last, EndNoted)
        return RequestStory(
            request=ended.request,
            sequence=ended.sequence,
            ended=True,
            arrived_at_s=ended.arrived_at_s,
            latency_s=last.latency_s,
            spent=last.spent,
            entries=entries,
            left_out=ended.left_out,
        )


class _Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An entry without what all of its story have."""

    at_s: float
    seq: int
    what: AnyNoted
    instance: InstanceId | None
    why: str


class _Ended(msgspec.Struct, frozen=True, array_like=True, gc=False):
    request: str
    sequence: str
    arrived_at_s: float
    left_out: int
    rows: list[_Row]


_ENDED = msgspec.msgpack.Decoder(_Ended)
_ENCODER = msgspec.msgpack.Encoder()


def _encode(story: Story) -> bytes:
    rows = [_Row(entry.at_s, entry.seq, entry.what, entry.instance, entry.why) for entry in story.entries]
    arrived_at_s = story.arrived_s + story.journal.since_s
    return _ENCODER.encode(_Ended(story.request, story.sequence, arrived_at_s, story.left_out, rows))
