"""Why does nothing happen? What admin routes say of requests that do not move, of instances that give none away, and of
a cluster that does not grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import assert_never

from fastapi.responses import Response

from llumnix.api import bodies
from llumnix.control.placing import first_id
from llumnix.control.scaling import ScalingMode
from llumnix.engine.vllm.front_end.admin.answers import answer
from llumnix.engine.vllm.front_end.admin.sizing import scaling_row
from llumnix.engine.vllm.front_end.slices import in_slices
from llumnix.engine.vllm.front_end.switchboard import Switchboard
from llumnix.journal.entries import MoveNoted, RoundNoted, StayNoted, kind_of
from llumnix.journal.journal import EntryFilter
from llumnix.journal.story import RequestStory
from llumnix.policy.demand import queued_demand_blocks
from llumnix.policy.pairing import Rejection
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot, RequestSnapshot
from llumnix.policy.why_not import Whereabouts, why_instance_keeps_all, why_not_moved, why_nothing_moves
from llumnix.types import InstanceId, Priority, RequestState, by_number
from llumnix.wire.news import ReadJournal
from llumnix.wire.to_front_end import RequestRow

_SCHEDULER_TIMEOUT_S = 1.0
"""Then it is as if it had turned nobody down."""
_WHYS_AT_ONCE = 8
"""For each the rules are gone through: that takes some five times as long as a row."""


async def why_not(board: Switchboard) -> Response:
    policy, rejected = board.spec.policy, await _turned_down(board)
    snapshots = _serving(board)
    answers = board.scheduler_state == "running"
    instances = {
        each.id: why_instance_keeps_all(each, policy, rejected, answers, snapshots)
        async for some in in_slices(snapshots, _WHYS_AT_ONCE)
        for each in some
    }
    return answer(
        bodies.WhyNotAnswer(
            moves=why_nothing_moves(ClusterSnapshot(at=0.0, instances=snapshots), policy, rejected, answers),
            instances=instances,
            starts=_why_none_starts(board),
        )
    )


def _serving(board: Switchboard) -> tuple[InstanceSnapshot, ...]:
    members = board.client.members.by_id
    return tuple(members[instance].snapshot for instance in sorted(members, key=by_number))


async def of_requests(
    board: Switchboard, live: Mapping[str, RequestStory], rows: Sequence[tuple[InstanceId, RequestRow]]
) -> dict[str, str]:
    """By sequence. `live`: their stories, `rows`: where they are."""
    rejected = await _turned_down(board)
    answers, serving = board.scheduler_state == "running", _serving(board)
    stays: dict[str, str] = {}
    for instance, row in rows:
        member, told = board.client.members.known.get(instance), live[first_id(row.request)]
        if member is not None:
            there = _whereabouts(row, told, member.snapshot, serving)
            stays[told.sequence] = why_not_moved(there, board.spec.policy, rejected, answers)
    return stays


async def _turned_down(board: Switchboard) -> list[Rejection]:
    """By the last round of pairing: the scheduler notes it when it changes, and nobody else does."""
    question = ReadJournal(places=None, limit=1, wanted=EntryFilter(kinds=(kind_of(RoundNoted),)))
    said = await board.ask_one(board.spec.book.scheduler, question, _SCHEDULER_TIMEOUT_S)
    entries = () if said is None else said.part.entries
    return [no for entry in entries if isinstance(entry.what, RoundNoted) for no in entry.what.rejected]


def _whereabouts(
    row: RequestRow, told: RequestStory, instance: InstanceSnapshot, serving: tuple[InstanceSnapshot, ...]
) -> Whereabouts:
    tokens = row.prompt_tokens + row.output_tokens
    moved_at_s = [entry.at_s for entry in told.entries if isinstance(entry.what, MoveNoted | StayNoted)]
    now_s = told.arrived_at_s + told.latency_s
    return Whereabouts(
        request=RequestSnapshot(
            id=row.request,
            state=RequestState(row.state),
            priority=Priority(row.priority),
            arrival_s=told.arrived_at_s,
            output_tokens=row.output_tokens,
            held_blocks=0,
            needed_blocks=queued_demand_blocks(tokens, instance),
            length_blocks=-(-tokens // instance.block_tokens),
            why_pinned=row.why_pinned,
        ),
        moved_ago_s=now_s - moved_at_s[-1] if moved_at_s else None,
        instance=instance,
        cluster=serving,
    )


def _why_none_starts(board: Switchboard) -> str:
    scaling = scaling_row(board)
    if scaling is None:
        return "the scheduler, which starts instances, does not answer"
    match scaling.mode:
        case ScalingMode.OFF:
            return "auto-scaling is off (--scaling): an instance starts only when somebody asks for one"
        case ScalingMode.ADVISE:
            return f"auto-scaling only says what it would do (--scaling advise); {scaling.now}"
        case ScalingMode.ON:
            return scaling.now
        case _:
            assert_never(scaling.mode)
