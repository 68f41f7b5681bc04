"""How many instances there are and will be: what the launcher says, put together with what was ordered since.

The launcher knows which processes exist, the scheduler which of them report, and what it ordered a moment ago; their
messages cross. Orders are numbered, and the launcher names the last one that it has carried out, so that none is
counted twice or forgotten.
"""

from __future__ import annotations

import msgspec

ORDER_DEADLINE_S = 30.0
"""An order that the launcher has not acknowledged for this long is not coming any more: it died with a scheduler."""


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """The launcher's count. An instance that ends is in none of these; one that is replaced is starting again."""

    serving: int
    """Those that have reported, draining ones included."""
    starting: int
    failing: int = 0
    """Those that failed to start more than once in a row, and are tried again and again."""
    last_order: int = 0
    """The last order of this scheduler that these counts include."""
    room: int | None = None
    """For how many more there are devices, those of instances that end not counted yet; None: nobody knows."""
    ending: bool = False
    """The server ends: nothing is started any more, and nothing need be drained."""


class FleetView:
    """Events must come in the order of their times."""

    def __init__(self) -> None:
        self._told: Fleet | None = None
        self._orders: dict[int, tuple[int, float]] = {}  # number -> how many, and when
        self._numbers = 0
        self._counted_until_s: float | None = None
        self._instance_s = 0.0

    def tell(self, at: float, fleet: Fleet) -> None:
        """The launcher's count changed."""
        self._count(at)
        self._told = fleet
        for number in [number for number in self._orders if number <= fleet.last_order]:
            del self._orders[number]

    def order(self, at: float, count: int) -> int:
        """Number of an order for `count` more, which goes out now."""
        self._numbers += 1
        self._orders[self._numbers] = (count, at)
        return self._numbers

    def expire(self, at: float) -> None:
        for number in [n for n, (_, ordered_s) in self._orders.items() if ordered_s + ORDER_DEADLINE_S <= at]:
            del self._orders[number]

    @property
    def known(self) -> bool:
        """Whether the launcher has said anything yet; before that nothing is known of what starts."""
        return self._told is not None

    @property
    def ending(self) -> bool:
        return self._told is not None and self._told.ending

    @property
    def failing(self) -> int:
        return 0 if self._told is None else self._told.failing

    def starting(self, heard: int) -> int:
        """Instances that will serve and do not report yet; `heard` is how many do."""
        told = self._told
        if told is None:
            return 0
        return told.starting + max(0, told.serving - heard) + sum(count for count, _ in self._orders.values())

    @property
    def room(self) -> int | None:
        """For how many more there are devices, after what was ordered; None if nobody knows."""
        if self._told is None or self._told.room is None:
            return None
        return max(0, self._told.room - sum(count for count, _ in self._orders.values()))

    @property
    def existing(self) -> int:
        """Instances that hold a machine: those that serve, drain or start."""
        return 0 if self._told is None else self._told.serving + self._told.starting

    def instance_seconds(self, at: float) -> float:
        """Σ over instances of the time that they existed, since the first count: what was paid for."""
        self._count(at)
        return self._instance_s

    def _count(self, at: float) -> None:
        if self._told is not None and self._counted_until_s is not None:
            self._instance_s += self.existing * (at - self._counted_until_s)
        self._counted_until_s = at
