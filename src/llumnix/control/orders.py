"""An order to move requests, from the scheduler's decision to the record of what became of it.

Both halves are carried whole, by every command, event and message on the way: whoever adds a fact touches the place
that knows it, the place that uses it, and this file.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NewType

import msgspec

from llumnix.policy.victim import Wanted
from llumnix.types import InstanceId, RequestId

MoveId = NewType("MoveId", str)
"""Names one order, wherever it is seen: in the scheduler's log and recording, in the llumlet's transcript, in the
notice to the front end, and in the record. Unique in a server: it begins with who gave the order."""

Ends = tuple[InstanceId, InstanceId]
"""Source and target of moves."""


class MoveCause(StrEnum):
    """Which rule gave an order. `MoveOrder.reason` is the sentence with its numbers; this is to be counted."""

    BALANCE = "balance"
    """Pairing: the less free gives to the freer."""
    ROOM = "room"
    """De-fragmentation: the first of the queue gets its place."""
    RELIEF = "relief"
    """It leaves before somebody has to be preempted."""
    PACE = "pace"
    """Its tokens come faster elsewhere."""
    DECODE = "decode"
    """Its prompt is computed, and it makes its tokens elsewhere: roles."""
    DRAIN = "drain"
    BY_HAND = "by_hand"


class StayCause(StrEnum):
    """Why an attempt ended without a move. `MoveOutcome.why_not` is the sentence; this is to be counted."""

    NOT_STARTED = "not_started"
    """The source had nothing (more) to give, or what was named cannot move."""
    REFUSED = "refused"
    """By the target: no room, too many at once, it drains, or reading failed."""
    NO_ADAPTER = "no_adapter"
    """By the target, which lacks its LoRA adapter, or has no place for it just now: others may go there."""
    BEGAN = "began"
    """It waited, and no room was asked for; now it runs, and would need some."""
    PREEMPTED = "preempted"
    TARGET_LOST = "target_lost"
    TIMEOUT = "timeout"
    UNCONFIRMED = "unconfirmed"
    """The target did not confirm in time, and the front end let it stay."""
    ENDED = "ended"
    """The request has ended, or goes on elsewhere."""


class MoveOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Give requests to `target`: the one named, or some that the source picks."""

    move_id: MoveId
    target: InstanceId
    cause: MoveCause
    reason: str
    request: RequestId | None = None
    wanted: Wanted = Wanted()
    """What to pick; not looked at when a request is named."""

    @property
    def is_onward(self) -> bool:
        """A front end's, for a request that it sends there: acted on when its prompt begins to be computed."""
        return self.request is not None and self.wanted.to_decode


class MoveFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What one attempt cost, as the source saw it."""

    stages: int = 0
    bytes_copied: int = 0
    blocks_skipped: int = 0
    """Blocks that the target's prefix cache had already."""
    held_blocks: int = 0
    """What the source has back now."""
    copy_s: float = 0.0
    """From the first block sent to the order to leave the batch; the request kept decoding."""
    handover_s: float = 0.0
    """From the order to leave the batch to the target's word that it runs."""


class MoveOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an order ended for one request."""

    order: MoveOrder
    source: InstanceId
    request: RequestId | None
    """None: the source had not as many to give as were wanted."""
    not_started: int | None = None
    """So many it had not, if `request` is None; None: none of those that have not ended yet."""
    why_not: str | None = None
    """Why it did not move; None: it did."""
    stayed: StayCause | None = None
    """The kind of `why_not`; None: it moved."""
    figures: MoveFigures = MoveFigures()

    @property
    def ok(self) -> bool:
        return self.why_not is None

    @property
    def some_started(self) -> bool:
        """The source gave fewer than were wanted, but gave."""
        return self.not_started is not None and self.not_started < self.order.wanted.count

    @property
    def who(self) -> str:
        """In a sentence that says what became of it."""
        return self.request or ("the rest" if self.some_started else "what was wanted")

    @property
    def came_late(self) -> bool:
        """Nothing was to be moved any more, or not the one that was named: that says nothing of the two instances."""
        named = self.order.request is not None and self.stayed is StayCause.NOT_STARTED
        began, wanted = self.stayed is StayCause.BEGAN, self.order.wanted
        return named or began or (self.request is None and wanted.to_decode and not wanted.without_adapter)
