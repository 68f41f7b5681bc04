"""How orders to move ended, for tests that care for little of it."""

from __future__ import annotations

from llumnix.control.orders import MoveCause, MoveId, MoveOrder, MoveOutcome, StayCause
from llumnix.policy.victim import Wanted
from llumnix.types import InstanceId, RequestId


def outcome(
    source: str,
    target: str,
    request: str | None = "r",
    why_not: str | None = None,
    stayed: StayCause | None = None,
    wanted: Wanted | None = None,
) -> MoveOutcome:
    """It moved, unless something says why not."""
    return MoveOutcome(
        order=MoveOrder(
            move_id=MoveId("m1"),
            target=InstanceId(target),
            cause=MoveCause.BALANCE,
            reason="balance",
            wanted=wanted or Wanted(),
        ),
        source=InstanceId(source),
        request=None if request is None else RequestId(request),
        why_not=why_not,
        stayed=stayed,
    )
