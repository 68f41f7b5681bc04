"""What operators ask the scheduler for, by way of a front end: it is refused with a reason, or becomes an event."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from msgspec.structs import replace

from llumnix.config import LARGEST_START
from llumnix.control import scheduler_events as control
from llumnix.control.gone import GoneIds
from llumnix.control.scheduler import GlobalScheduler
from llumnix.types import InstanceId
from llumnix.wire.base import InstanceInfo
from llumnix.wire.outbox import Mail
from llumnix.wire.to_front_end import Answer, DrainReports
from llumnix.wire.to_scheduler import (
    AddInstances,
    DrainInstance,
    GiveRole,
    ListDrains,
    OperatorOrder,
    UndrainInstance,
    Wish,
)

log = logging.getLogger(__name__)

_WHY_NOT_THE_LAST = (
    "{instance} is the last instance that takes requests: new ones would get 503 until another one runs, and those "
    "that it has could go nowhere. Start another one first (`llumnix start`), or force it (`--force`, `?force=true`): "
    "then it takes no more requests, finishes those that it has and stops, and the server waits for `llumnix start`"
)


@dataclass
class HeardOf:
    """The instances that the scheduler's process has heard of."""

    serving: dict[InstanceId, InstanceInfo] = field(default_factory=dict)
    starting: set[InstanceId] = field(default_factory=set)
    gone: GoneIds = field(default_factory=GoneIds)


class Wishes:
    def __init__(
        self,
        scheduler: GlobalScheduler,
        heard_of: HeardOf,
        handle: Callable[[control.SchedulerEvent], None],
        post: Callable[[str, Mail], None],
    ) -> None:
        self._scheduler = scheduler
        self._heard_of = heard_of
        self._handle = handle
        self._post = post
        self._early_drains: dict[InstanceId, tuple[float, DrainInstance]] = {}
        """Orders of the launcher's, and when they came, for instances of which no report has come yet: this scheduler
        may be younger than they are."""

    def take(self, message: Wish, at: float) -> None:
        """An order that got no answer in time, while no scheduler lived or this one stood still, is forgotten: who gave
        it was told that it failed, and may have given it again."""
        if isinstance(message, OperatorOrder) and message.until_s is not None and message.until_s <= at:
            log.warning("not carried out, since it came too late: %s", message)
            return
        match message:
            case DrainInstance():
                self._on_drain(message, at)
            case UndrainInstance():
                why = self._scheduler.drains.why_not_withdrawn(message.instance)
                self._answer(message.reply_to, message.query, why)
                if not why:
                    self._handle(control.DrainWithdrawn(at=at, instance=message.instance))
            case GiveRole():
                self._on_role(message, at)
            case AddInstances():
                self._on_add(message, at)
            case ListDrains():
                drains = DrainReports(query=message.query, reports=tuple(self._scheduler.drains.reports(at)))
                self._post(message.reply_to, drains)
            case _:
                assert_never(message)

    def reported(self, instance: InstanceId, at: float) -> None:
        """It is there: what was ordered for it before begins, and its time has run since the order came."""
        if not self._early_drains:
            return
        came_s, order = self._early_drains.pop(instance, (at, None))
        if order is not None:
            left_s = None if order.timeout_s is None else max(0.0, order.timeout_s - (at - came_s))
            self._on_drain(replace(order, timeout_s=left_s), at)

    def forget(self, instance: InstanceId) -> None:
        self._early_drains.pop(instance, None)

    def _on_drain(self, message: DrainInstance, at: float) -> None:
        instance = message.instance
        if instance in self._heard_of.serving and message.spare_last and self._scheduler.is_last(instance):
            self._answer(message.reply_to, message.query, _WHY_NOT_THE_LAST.format(instance=instance))
        elif instance in self._heard_of.serving:
            self._answer(message.reply_to, message.query)
            self._handle(
                control.DrainRequested(
                    at=at,
                    instance=instance,
                    keep=message.keep,
                    timeout_s=message.timeout_s,
                    why=message.why,
                    firm=message.firm,
                )
            )
        elif message.reply_to or instance in self._heard_of.gone:
            self._answer(message.reply_to, message.query, self._why_not_there(instance))
        else:
            self._early_drains[instance] = (at, message)

    def _on_role(self, message: GiveRole, at: float) -> None:
        why = self._why_not_there(message.instance)
        if not self._scheduler.knows_roles:
            why = "with --roles adaptive they are the scheduler's to give, and without migration there are none"
        self._answer(message.reply_to, message.query, why)
        if not why:
            self._handle(control.RoleWanted(at=at, instance=message.instance, role=message.role))

    def _why_not_there(self, instance: InstanceId) -> str:
        """Empty if it is."""
        if instance in self._heard_of.serving:
            return ""
        if instance in self._heard_of.gone:
            return f"{instance} is gone"
        return (
            f"{instance} is still starting"
            if instance in self._heard_of.starting
            else f"there is no instance {instance}"
        )

    def _on_add(self, message: AddInstances, at: float) -> None:
        why = self._why_not_added(message.count) or (message.replaces and self._why_not_there(message.replaces)) or ""
        self._answer(message.reply_to, message.query, why)
        if not why:
            self._handle(control.StartRequested(at=at, count=message.count, replaces=message.replaces))

    def _why_not_added(self, count: int) -> str:
        if not 1 <= count <= LARGEST_START:
            return f"count must be between 1 and {LARGEST_START}, not {count}"
        room = self._scheduler.fleet.room
        if room is None or count <= room:
            return ""
        fits = f"for {room} more" if room else "for none more: each is an instance's, until that is gone"
        return f"this machine has GPUs {fits}; serve with a larger --instances-per-gpu to have instances share them"

    def _answer(self, address: str, query: int, why: str = "") -> None:
        if address:
            self._post(address, Answer(query=query, ok=not why, why=why))
