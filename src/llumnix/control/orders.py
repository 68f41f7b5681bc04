"""An order to move requests, from the scheduler's decision to the record of what became of it.

Both halves are carried whole, by every command, event and message on the way: whoever adds a fact touches the place
that knows it, the place that uses it, and this file.
"""

from __future__ import annotations

from typing import NewType

import msgspec

from llumnix.policy.victim import Wanted
from llumnix.types import InstanceId, RequestId

MoveId = NewType("MoveId", str)
"""Names one order, wherever it is seen: in the scheduler's log and recording, in the llumlet's story, in the notice to
the front end, and in the record. Unique in a server: it begins with who gave the order."""


class MoveOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Give requests to `target`: the one named, or some that the source picks."""

    move_id: MoveId
    target: InstanceId
    reason: str
    request: RequestId | None = None
    wanted: Wanted = Wanted()
    """What to pick; not looked at when a request is named."""


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
    """None: the source had nothing (more) to give, which ends the order."""
    why_not: str | None = None
    """Why it did not move; None: it did."""
    figures: MoveFigures = MoveFigures()

    @property
    def ok(self) -> bool:
        return self.why_not is None
