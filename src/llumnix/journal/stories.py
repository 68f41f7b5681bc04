"""The stories of a front end: of all sequences that it streams, and of the last ones that ended.

An ended one is kept encoded, in less than half the memory. All sequences of a request have its id, and so have all
requests of a client that gives each the same one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain

import msgspec

from llumnix.journal.entries import AnyNoted, EndNoted, JournalEntry, Spent
from llumnix.journal.journal import Journal
from llumnix.journal.story import RequestStory, Story, meant
from llumnix.types import InstanceId

ENDED_KEPT = 20_000
"""Ended sequences whose stories are kept, the latest."""

ENDED_BYTES = 20 << 20
"""Of all of these, with the ids of their requests, which clients may choose."""

SEQUENCES_KEPT = 64
"""Of one id, the latest."""


class RequestStories(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a request."""

    stories: tuple[RequestStory, ...]
    """Of its sequences, those that ended first; none if nobody knows it (any more)."""
    left_out: dict[str, int]
    """Sequences that came before these, by the request's whole id."""
    kept: int
    """Ended sequences of all requests whose stories are known."""


def told_together(parts: Sequence[RequestStories]) -> RequestStories:
    """What several front ends know of the same request."""
    return RequestStories(
        stories=tuple(story for part in parts for story in part.stories),
        left_out=dict(sum((Counter(part.left_out) for part in parts), Counter())),
        kept=sum(part.kept for part in parts),
    )


class Stories:
    """Of one front end. `began` is called for every sequence that arrives, `over` when it has ended."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.listener: Callable[[Story], None] | None = None
        """Told of every one that is over, and must be quick."""
        self._live: dict[str, Story] = {}
        self._ended: dict[str, tuple[bytes, ...]] = {}
        """By request, its sequences; the last request is the one of which a sequence ended last."""
        self._forgotten: dict[str, int] = {}
        """Of some of these requests, how many more ended."""
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
        _ENCODER.encode_into(_without_names(story), self._buffer)
        kept = bytes(self._buffer)  # what `encode` returns has room for more
        if story.request not in self._ended:
            self._bytes += _length(story.request)
        theirs = self._ended[story.request] = (*self._ended.pop(story.request, ()), kept)
        self._sequences += 1
        self._bytes += len(kept)
        if len(theirs) > SEQUENCES_KEPT:
            self._forget_first(story.request)
        while self._sequences > ENDED_KEPT or self._bytes > ENDED_BYTES:
            self._forget_first(next(iter(self._ended)))

    def tell(self, request: str, at_s: float) -> RequestStories:
        """Of two requests, if what is given is the beginning of several ids."""
        live = (story.request for story in self._live.values())
        names = [request] if request in self._ended else meant(request, chain(live, self._ended))
        parts = [self._exactly(name, at_s) for name in names]
        return msgspec.structs.replace(told_together(parts), kept=self._sequences)

    def _exactly(self, request: str, at_s: float) -> RequestStories:
        live = (story for story in self._live.values() if story.request == request)
        known: list[bytes | Story] = [*self._ended.get(request, ()), *live]
        told = (
            self._told(request, each) if isinstance(each, bytes) else each.told(at_s)
            for each in known[-SEQUENCES_KEPT:]
        )
        left_out = self._forgotten.get(request, 0) + max(0, len(known) - SEQUENCES_KEPT)
        return RequestStories(stories=tuple(told), left_out={request: left_out} if left_out else {}, kept=0)

    def _forget_first(self, request: str) -> None:
        first, *others = self._ended[request]
        self._sequences -= 1
        self._bytes -= len(first)
        if others:
            self._ended[request] = tuple(others)
            self._forgotten[request] = self._forgotten.get(request, 0) + 1
        else:
            del self._ended[request]
            self._bytes -= _length(request)
            self._forgotten.pop(request, None)

    def _told(self, request: str, kept: bytes) -> RequestStory:
        ended = _ENDED.decode(kept)
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


_ENDED = msgspec.msgpack.Decoder(_Ended)
_ENCODER = msgspec.msgpack.Encoder()


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
        story.arrived_at_s,
        story.left_out,
        [*rows, _Row(last.at_s, last.seq, None, last.instance, last.why)],
        end.outcome,
        end.prompt_tokens,
        end.output_tokens,
        msgspec.structs.astuple(end.spent),
    )


def _length(request: str) -> int:
    """In bytes, about: what Python itself says of a text grows once that has been encoded."""
    return len(request.encode("utf-8", "surrogatepass"))
