"""Moves that were asked for and are in flight, as the scheduler and (`onward.py`) front ends remember them."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from llumnix.control.back_off import BackOff
from llumnix.control.orders import Ends, MoveCause, MoveId, MoveOrder
from llumnix.control.scheduler_events import MoveRequest
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.victim import Wanted
from llumnix.types import InstanceId, RequestId

MOVE_DEADLINE_S = 60.0
"""After this long without an answer a move counts as ended. Nothing is lost if it is still going on: reports count it,
and the llumlets have deadlines of their own."""

_PROMISE = frozenset({MoveCause.DECODE, MoveCause.DRAIN})
"""Orders for these causes name the room that those who leave may need (`Wanted.room_blocks`), which is promised to
them; others name all the room that the target has."""


class _Asked(msgspec.Struct):
    count: int
    deadline_s: float
    promised_blocks: int


class MovesInFlight:
    """Moves asked for and not answered, per pair of instances. `name`: the ids of orders that are made here begin with
    it. `back_off`: what these go by."""

    def __init__(self, name: str = "", back_off: BackOff | None = None) -> None:
        self._name = name
        self._back_off = back_off
        self._orders = 0
        self._asked: dict[Ends, _Asked] = {}
        self._outgoing: dict[InstanceId, int] = {}
        self._incoming: dict[InstanceId, int] = {}
        self._promised: dict[InstanceId, int] = {}

    def __len__(self) -> int:
        return sum(asked.count for asked in self._asked.values())

    def outgoing(self, source: InstanceId) -> int:
        return self._outgoing.get(source, 0)

    def incoming(self, target: InstanceId) -> int:
        return self._incoming.get(target, 0)

    def promised_blocks(self, target: InstanceId, arrived: int) -> int:
        """What those of its incoming moves may take there that have not reserved it yet: all but `arrived` of them."""
        incoming = self.incoming(target)
        promised = self._promised.get(target, 0)
        return -(-promised * (incoming - arrived) // incoming) if incoming > arrived else 0

    def less_promised(self, target: InstanceSnapshot, arrived: int) -> InstanceSnapshot:
        """What is promised there counts as taken, though nobody has reserved it yet."""
        promised = self.promised_blocks(target.id, arrived)
        return replace(target, free_blocks=max(0, target.free_blocks - promised)) if promised else target

    def remember(self, ends: Ends, count: int, deadline_s: float, promised_blocks: int) -> None:
        """So many were asked for, which may take so much at the target."""
        asked = self._asked.setdefault(ends, _Asked(0, 0.0, 0))
        asked.deadline_s = deadline_s
        self._change(ends, count, promised_blocks)

    def request(
        self,
        at: float,
        ends: Ends,
        wanted: Wanted,
        cause: MoveCause,
        reason: str,
        named: RequestId | None = None,
    ) -> MoveRequest:
        """The order to move some that the source picks, of what the pair may be asked for now, or the one that is
        named, remembered."""
        source, target = ends
        if self._back_off is not None:
            wanted = self._back_off.narrowed(at, ends, wanted)
        promised_blocks = wanted.room_blocks or 0 if cause in _PROMISE else 0
        self.remember(ends, wanted.count, at + MOVE_DEADLINE_S, promised_blocks)
        self._orders += 1
        move_id = MoveId(f"{self._name}-{self._orders}")
        order = MoveOrder(move_id=move_id, target=target, cause=cause, reason=reason, wanted=wanted, request=named)
        return MoveRequest(source=source, order=order)

    def end(self, ends: Ends, count: int | None = 1, *, with_promise: bool = True) -> bool:
        """So many moves of the pair, or all of them, ended; False if none was asked for (any more). Not
        `with_promise`: the others may take as much of the room as all together."""
        asked = self._asked.get(ends)
        if asked is None:
            return False
        ended = asked.count if count is None else min(count, asked.count)
        share = asked.promised_blocks * ended // asked.count if with_promise or ended == asked.count else 0
        self._change(ends, -ended, -share)
        return True

    def expire(self, at: float) -> list[Ends]:
        """Those that were not answered in time; they count as ended."""
        late = [ends for ends, asked in self._asked.items() if asked.deadline_s <= at]
        for ends in late:
            self.end(ends, count=None)
        return late

    def forget(self, instance: InstanceId) -> None:
        """The instance is gone, and with it every move from and to it."""
        for ends in [ends for ends in self._asked if instance in ends]:
            self.end(ends, count=None)

    def _change(self, ends: Ends, by: int, promised_blocks: int) -> None:
        asked = self._asked[ends]
        asked.count += by
        asked.promised_blocks += promised_blocks
        if not asked.count:
            del self._asked[ends]
        source, target = ends
        for sums, instance, more in (
            (self._outgoing, source, by),
            (self._incoming, target, by),
            (self._promised, target, promised_blocks),
        ):
            sums[instance] = sums.get(instance, 0) + more
            if not sums[instance]:
                del sums[instance]
