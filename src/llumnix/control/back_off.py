"""Moves that were refused a moment ago, and are not to be asked for again at once."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import msgspec
from msgspec.structs import replace

from llumnix.control.orders import Ends, MoveOutcome, StayCause
from llumnix.policy.victim import Wanted
from llumnix.types import InstanceId

FIRST_BACK_OFF_S = 0.5
LONGEST_BACK_OFF_S = 8.0

_Refused = tuple[InstanceId, InstanceId | None, bool]
"""Source, target, and whether only a request with an adapter was."""


class _Refusals(msgspec.Struct):
    count: int
    until_s: float


class _BackingOff:
    """All keys for which `holds(key, at)`. Each is looked at when it is asked for: refusals may be many."""

    __slots__ = ("_at", "_holds")

    def __init__(self, holds: Callable[[Any, float], bool], at: float) -> None:
        self._holds = holds
        self._at = at

    def __contains__(self, key: object) -> bool:
        return self._holds(key, self._at)


class BackOff:
    """Who was refused lately, and until when not to ask again: each refusal in a row doubles the wait. `target`
    None stands for a source that had nothing to give to anybody. A pair of which the target had no place for an
    adapter is asked again, for requests without one."""

    def __init__(self) -> None:
        self._refusals: dict[_Refused, _Refusals] = {}

    def __len__(self) -> int:
        return len(self._refusals)

    def refused(self, at: float, outcome: MoveOutcome) -> None:
        """The order ended without a move."""
        source, target, wanted = outcome.source, outcome.order.target, outcome.order.wanted
        if outcome.stayed is StayCause.NO_ADAPTER:
            self._hold(at, (source, target, True))
        elif outcome.request is None and not wanted.without_adapter:
            self._hold(at, (source, None, False))
        else:
            self._hold(at, (source, target, False))

    def unanswered(self, at: float, ends: Ends) -> None:
        self._hold(at, (*ends, False))

    def _hold(self, at: float, what: _Refused) -> None:
        refusals = self._refusals.setdefault(what, _Refusals(0, 0.0))
        wait_s = min(LONGEST_BACK_OFF_S, FIRST_BACK_OFF_S * 2.0 ** min(refusals.count, 16))
        refusals.count += 1
        refusals.until_s = at + wait_s

    def succeeded(self, source: InstanceId, target: InstanceId) -> None:
        self._refusals.pop((source, target, False), None)
        self._refusals.pop((source, None, False), None)

    def narrowed(self, at: float, ends: Ends, wanted: Wanted) -> Wanted:
        """What the pair may be asked for now."""
        return replace(wanted, without_adapter=True) if self._holds((*ends, True), at) else wanted

    def pairs(self, at: float) -> Container[Ends]:
        """Those that are not to be asked now. Valid until the next event."""
        return _BackingOff(lambda ends, at: self._holds((*ends, False), at), at)

    def empty_handed(self, at: float) -> Container[InstanceId]:
        """Sources that had nothing to give a moment ago. Valid until the next event."""
        return _BackingOff(lambda source, at: self._holds((source, None, False), at), at)

    def _holds(self, key: _Refused, at: float) -> bool:
        known = self._refusals.get(key)
        return known is not None and at < known.until_s

    def expire(self, at: float) -> None:
        """Forgets refusals that ended long ago: what comes then is a first refusal again."""
        for key in [key for key, known in self._refusals.items() if known.until_s + LONGEST_BACK_OFF_S <= at]:
            del self._refusals[key]

    def forget(self, instance: InstanceId) -> None:
        for key in [key for key in self._refusals if instance in key]:
            del self._refusals[key]
