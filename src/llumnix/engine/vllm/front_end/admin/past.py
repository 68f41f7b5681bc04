"""Admin routes that tell what happened: the journals of all processes, and the stories of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastapi.responses import Response

from llumnix.api import bodies
from llumnix.control.placing import first_id
from llumnix.engine.vllm.front_end.admin.answers import Bad, answer, count_of, shown
from llumnix.engine.vllm.front_end.switchboard import Switchboard
from llumnix.journal.entries import KINDS, MoveNoted, RoundNoted, StayNoted
from llumnix.journal.journal import EntryFilter, read_cursor, show_cursor
from llumnix.journal.story import RequestStory
from llumnix.policy.dispatch import queued_demand_blocks
from llumnix.policy.snapshot import InstanceSnapshot, RequestSnapshot
from llumnix.policy.why_not import Settled, why_not_moved
from llumnix.types import InstanceId, Priority, RequestState
from llumnix.wire.to_front_end import RequestRow

_MOST_ENTRIES = 1000


async def journal(board: Switchboard, params: Mapping[str, str]) -> Response:
    reading = await board.read_journals(_places(params), count_of(params, "limit", 100, _MOST_ENTRIES), _wanted(params))
    return answer(
        bodies.JournalAnswer(entries=list(reading.entries), cursor=show_cursor(reading.places), lost=reading.lost)
    )


async def story(board: Switchboard, request_id: str) -> Response:
    found, kept = await board.tell_story(request_id)
    if not found:
        among = f"or among the {kept:,} that ended last"
        raise Bad(
            404, f"There is no request {shown(request_id)} that is running or queued, {among}.", "not_found_error"
        )
    return answer(bodies.StoryAnswer(stories=found, stays=await _stays(board, request_id, found)))


async def _stays(board: Switchboard, request_id: str, stories: Sequence[RequestStory]) -> dict[str, str]:
    live = {told.sequence: told for told in stories if not told.ended}
    if not live:
        return {}
    rows = [row for row in await board.list_requests(like=request_id) if first_id(row[1].request) in live]
    last = await board.read_journals(None, 1, EntryFilter(kinds=("round",)))
    rejected = [no for entry in last.entries if isinstance(entry.what, RoundNoted) for no in entry.what.rejected]
    answers = board.scheduler_state == "running"
    stays: dict[str, str] = {}
    for instance, row in rows:
        member, told = board.client.members.known.get(instance), live[first_id(row.request)]
        if member is not None:
            settled = _settled(row, told, member.snapshot)
            stays[told.sequence] = why_not_moved(settled, board.spec.policy, rejected, answers)
    return stays


def _settled(row: RequestRow, told: RequestStory, instance: InstanceSnapshot) -> Settled:
    tokens = row.prompt_tokens + row.output_tokens
    moved_at_s = [entry.at_s for entry in told.entries if isinstance(entry.what, MoveNoted | StayNoted)]
    now_s = told.arrived_at_s + told.latency_s
    return Settled(
        request=RequestSnapshot(
            id=row.request,
            state=RequestState(row.state),
            priority=Priority(row.priority),
            arrival_s=told.arrived_at_s,
            prompt_tokens=row.prompt_tokens,
            output_tokens=row.output_tokens,
            held_blocks=0,
            needed_blocks=queued_demand_blocks(tokens, instance.block_tokens, instance.state_blocks),
            movable=not row.why_pinned,
        ),
        why_pinned=row.why_pinned,
        moved_ago_s=now_s - moved_at_s[-1] if moved_at_s else None,
        instance=instance,
    )


def _places(params: Mapping[str, str]) -> dict[str, int] | None:
    if "after" not in params:
        return None
    try:
        return read_cursor(params["after"])
    except ValueError as error:
        raise Bad(400, f"after must be a cursor as an answer has it: {error}.") from error


def _wanted(params: Mapping[str, str]) -> EntryFilter:
    kinds = tuple(params["kind"].split(",")) if "kind" in params else ()
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise Bad(400, f"There is no kind {shown(unknown[0])}; there are {', '.join(KINDS)}.")
    instance = params.get("instance")
    return EntryFilter(kinds=kinds, instance=None if instance is None else InstanceId(instance))
