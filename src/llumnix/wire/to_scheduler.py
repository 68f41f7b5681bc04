"""All that the scheduler takes: from instances, the launcher and front ends."""

from __future__ import annotations

import msgspec

from llumnix.control.fleet import Fleet
from llumnix.control.orders import MoveOutcome
from llumnix.control.scheduler_events import ASKED_FOR
from llumnix.types import InstanceId, RequestId, Role
from llumnix.wire.base import Question, Wire
from llumnix.wire.news import InstanceGone, InstanceStarting, ReadJournal, Report


class MoveAnswer(Wire, frozen=True, kw_only=True, tag=True):
    """To whoever gave the order."""

    outcome: MoveOutcome


class InstanceServing(Wire, frozen=True, kw_only=True, tag=True):
    """It serves, so its heartbeats are due, even if the scheduler has not heard one yet."""

    instance: InstanceId


class FleetChanged(Wire, frozen=True, kw_only=True, tag=True):
    """From the launcher: what there is and what starts, at each change."""

    fleet: Fleet


class HeldHere(Wire, frozen=True, kw_only=True, tag=True):
    """From a front end, once a second while it holds requests back, and once when it has stopped."""

    front_end: int
    requests: int
    tokens: int
    """Of their prompts."""


class ReplayedElsewhere(Wire, frozen=True, kw_only=True, tag=True):
    """A front end's answer to `ReplayRest`."""

    instance: InstanceId
    count: int


class FoundCached(Wire, frozen=True, kw_only=True, tag=True):
    """A front end's answer to `AskWhereCached`."""

    instance: InstanceId
    where: dict[RequestId, InstanceId]
    front_ends: int
    """So many there are, who were all asked."""


class Timed(Question, frozen=True, kw_only=True, tag=True):
    """Base of what is not to be carried out once nobody waits for the answer."""

    until_s: float | None = None
    """An instant on the monotonic clock of the machine, that of the launcher, front ends and scheduler. After it nobody
    waits for an answer any more, and who asked was told so: it is not to be carried out. None: it holds whenever it
    comes."""


class DrainInstance(Timed, frozen=True, kw_only=True, tag=True):
    """Empty the instance by migration, then stop it (unless `keep`)."""

    instance: InstanceId
    keep: bool = False
    timeout_s: float | None = None
    """After this long what is left is replayed elsewhere; None: as configured."""
    why: str = ASKED_FOR
    firm: bool = False
    """There is no way back: its node goes."""
    spare_last: bool = False
    """Refuse if no other instance takes requests."""


class UndrainInstance(Timed, frozen=True, kw_only=True, tag=True):
    """Let a draining or drained instance take requests again."""

    instance: InstanceId


class GiveRole(Timed, frozen=True, kw_only=True, tag=True):
    """Have the instance preferred for this from now on."""

    instance: InstanceId
    role: Role


class AddInstances(Timed, frozen=True, kw_only=True, tag=True):
    """Start `count` more, with the role of the one that they replace, if any."""

    count: int
    replaces: InstanceId | None = None


class ListDrains(Question, frozen=True, kw_only=True, tag=True):
    """Answered with `DrainReports`."""


OperatorOrder = DrainInstance | UndrainInstance | GiveRole | AddInstances
"""What operators tell the scheduler, by way of a front end, and the launcher for them."""

Wish = OperatorOrder | ListDrains

ToScheduler = (
    Report
    | MoveAnswer
    | InstanceStarting
    | InstanceServing
    | InstanceGone
    | FleetChanged
    | ReplayedElsewhere
    | FoundCached
    | ReadJournal
    | HeldHere
    | Wish
)

SCHEDULER_MAIL: msgspec.msgpack.Decoder[ToScheduler] = msgspec.msgpack.Decoder(ToScheduler)
