"""Admin routes that change which instances there are, and for what, or tell how that changes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from math import isfinite
from typing import Any

import msgspec
from fastapi.responses import Response

from llumnix.api import bodies
from llumnix.config import LARGEST_START
from llumnix.engine.vllm.front_end.admin.answers import Bad, answer, sentence, shown
from llumnix.engine.vllm.front_end.switchboard import Switchboard
from llumnix.types import InstanceId, InstanceState, Role
from llumnix.wire.to_scheduler import AddInstances, DrainInstance, GiveRole, ListDrains, OperatorOrder, UndrainInstance

_SCHEDULER_TIMEOUT_S = 5.0


async def start(board: Switchboard, count: Any, replaces: str | None) -> Response:
    if isinstance(count, bool) or not 1 <= count <= LARGEST_START:
        raise Bad(400, f"count must be a number from 1 to {LARGEST_START}, not {shown(count)}.")
    old = None if replaces is None else InstanceId(replaces)
    if old is not None and count != 1:
        raise Bad(400, f"One instance replaces another, not {count}.")
    if old is not None and old not in board.client.members.by_id:
        raise unknown_or_gone(board, old)
    await _order(board, AddInstances(count=count, replaces=old))
    return answer(bodies.StartedAnswer(starting=count), 202)


async def drain(board: Switchboard, instance: InstanceId, params: Mapping[str, str]) -> Response:
    keep, force, timeout = _yes(params, "keep"), _yes(params, "force"), params.get("timeout_s")
    if instance not in board.client.members.by_id:
        raise unknown_or_gone(board, instance)
    order = DrainInstance(
        instance=instance,
        keep=keep,
        timeout_s=None if timeout is None else _seconds("timeout_s", timeout),
        spare_last=not force,
    )
    await _order(board, order)
    return answer(bodies.StateAnswer(id=instance, state=InstanceState.DRAINING), 202)


async def undrain(board: Switchboard, instance: InstanceId) -> Response:
    if instance not in board.client.members.by_id:
        raise unknown_or_gone(board, instance)
    await _order(board, UndrainInstance(instance=instance))
    return answer(bodies.StateAnswer(id=instance, state=InstanceState.RUNNING), 202)


async def role(board: Switchboard, instance: InstanceId, word: str) -> Response:
    if word not in (*Role,):
        raise Bad(400, f"role must be {', '.join(Role)}, not {shown(word)}.")
    if instance not in board.client.members.by_id:
        raise unknown_or_gone(board, instance)
    await _order(board, GiveRole(instance=instance, role=Role(word)))
    return answer(bodies.RoleAnswer(id=instance, role=Role(word)))


async def drains(board: Switchboard) -> Response:
    """Drains under way, and reports of those that ended."""
    said = await board.ask_one(board.spec.book.scheduler, ListDrains(), _SCHEDULER_TIMEOUT_S)
    if said is None:
        raise _scheduler_silent()
    return answer(bodies.DrainsAnswer(drains=list(said.reports)))


async def scaling(board: Switchboard) -> Response:
    """Size of the cluster and what auto-scaling makes of it, as of half a second ago at most."""
    row = scaling_row(board)
    if row is None:
        raise _scheduler_silent()
    return answer(row)


def scaling_row(board: Switchboard) -> bodies.ScalingRow | None:
    """None while the scheduler is silent."""
    status = board.scaling
    if status is None or board.scheduler_state != "running":
        return None
    mean_instances = status.instance_seconds / status.watched_s if status.watched_s else None
    return bodies.ScalingRow(**msgspec.structs.asdict(status), mean_instances=mean_instances)


def unknown_or_gone(board: Switchboard, instance: InstanceId) -> Bad:
    """Why nothing can be done with an instance that is no member."""
    if instance in board.strangers.starting or instance in board.client.members.courted:
        return Bad(409, f"Instance {instance} is still starting.", "conflict_error")
    for message, state in board.strangers.gone:
        if message.instance == instance:
            return Bad(409, f"Instance {instance} is {state}: {message.why}.", "conflict_error")
    return Bad(404, f"There is no instance {shown(instance)}.", "not_found_error")


def check_heard_of(board: Switchboard, instance: InstanceId) -> None:
    """Raises Bad for one that is not there, and was not lately."""
    if instance not in board.client.members.by_id:
        bad = unknown_or_gone(board, instance)
        if bad.status == 404:
            raise bad


def _yes(params: Mapping[str, str], name: str) -> bool:
    text = params.get(name, "false")
    if text not in ("true", "false"):
        raise Bad(400, f"{name} must be true or false, not {shown(text)}.")
    return text == "true"


def _seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not isfinite(seconds) or seconds < 0:
        raise Bad(400, f"{name} must be a number of seconds, not {shown(text)}.")
    return seconds


async def _order(board: Switchboard, order: OperatorOrder) -> None:
    """Raises Bad if it is refused. What got no answer is not carried out later, by a scheduler that was restarted."""
    timed = msgspec.structs.replace(order, until_s=time.monotonic() + _SCHEDULER_TIMEOUT_S)
    said = await board.ask_one(board.spec.book.scheduler, timed, _SCHEDULER_TIMEOUT_S)
    if said is None:
        raise _scheduler_silent()
    if not said.ok:
        raise Bad(409, sentence(said.why), "conflict_error")


def _scheduler_silent() -> Bad:
    return Bad(503, "The scheduler does not answer; it is being restarted.", "service_unavailable_error")
