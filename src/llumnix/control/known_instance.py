"""One instance as a front end knows it: what it reported, and the ledger of what was sent there since."""

from __future__ import annotations

from collections import deque

import msgspec
from msgspec.structs import replace

from llumnix.policy.prefix import ChunkId
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, RequestId

RankKey = tuple[float, float, InstanceId]
"""Its rank by the dispatch rule, and its id for what is left of a tie."""


class Sent(msgspec.Struct, frozen=True, gc=False):
    """A dispatch that the instance's reports do not count yet."""

    request: RequestId
    blocks: int
    tokens: int
    """To be computed before it has its first token."""
    high: bool
    chunks: tuple[ChunkId, ...]
    """Of its prompt, which the instance will have computed."""


class KnownInstance:
    __slots__ = (
        "dispatched",
        "keys",
        "last_turn",
        "most_tokens",
        "reported",
        "room_tokens",
        "under_way",
        "under_way_blocks",
        "under_way_high",
        "under_way_tokens",
        "view",
    )

    def __init__(self, reported: InstanceSnapshot, dispatched: int) -> None:
        """`dispatched`: requests of this front end that the report counts already."""
        self.reported = reported
        self.view = reported
        """`reported` with the dispatches under way counted as waiting."""
        self.most_tokens = 0
        """Of the longest request that it could ever begin with."""
        self.room_tokens = 0
        """Of the longest prompt of normal priority that has room there at once, by `view`: behind whoever waits and
        whatever is on its way, and without the headroom."""
        self.dispatched = dispatched
        """All dispatches of this front end to it, counted as its reports count them."""
        self.under_way: deque[Sent] = deque()
        self.under_way_blocks = 0
        self.under_way_tokens = 0
        self.under_way_high = 0
        self.last_turn = 0
        self.keys: list[RankKey | None] = [None, None]
        """Where it stands in the order for normal and for high requests; None if it takes none."""

    def add(self, sent: Sent) -> None:
        self.under_way.append(sent)
        self.under_way_blocks += sent.blocks
        self.under_way_tokens += sent.tokens
        self.under_way_high += sent.high
        self.dispatched += 1

    def close(self, sent: Sent) -> None:
        """The first of the ledger, or one that was never sent, is charged no more."""
        self.under_way.remove(sent)
        self.under_way_blocks -= sent.blocks
        self.under_way_tokens -= sent.tokens
        self.under_way_high -= sent.high

    def with_ledger(self) -> InstanceSnapshot:
        """`reported` with the dispatches under way counted as waiting."""
        if not self.under_way:
            return self.reported
        reported = self.reported
        return replace(
            reported,
            waiting=reported.waiting + len(self.under_way),
            queued_blocks=reported.queued_blocks + self.under_way_blocks,
            prefill_tokens=reported.prefill_tokens + self.under_way_tokens,
            high_waiting=reported.high_waiting + self.under_way_high,
            head_of_line_blocks=reported.head_of_line_blocks or self.under_way[0].blocks,
        )
