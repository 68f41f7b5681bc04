"""Admin routes that tell what happened: the journals of all processes, and the stories of requests."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.responses import Response

from llumnix.api import bodies
from llumnix.control.placing import first_id
from llumnix.engine.vllm.front_end.admin import looking, sizing, staying
from llumnix.engine.vllm.front_end.admin.answers import Bad, answer, count_of, shown
from llumnix.engine.vllm.front_end.slices import in_slices
from llumnix.engine.vllm.front_end.switchboard import Switchboard
from llumnix.journal.entries import KINDS
from llumnix.journal.journal import EntryFilter, read_cursor, show_cursor
from llumnix.journal.story import meant
from llumnix.journal.words import how_it_is, sentence
from llumnix.types import InstanceId

_MOST_ENTRIES = 1000
_STORIES_AT_ONCE = 8
"""Each has some sentences."""


async def journal(board: Switchboard, params: Mapping[str, str]) -> Response:
    wanted = _wanted(params)
    reading = await board.read_journals(_places(params), count_of(params, "limit", 100, _MOST_ENTRIES), wanted)
    if wanted.instance is not None and not reading.entries:
        sizing.check_heard_of(board, wanted.instance)
    return answer(
        bodies.JournalAnswer(entries=list(reading.entries), cursor=show_cursor(reading.places), lost=reading.lost)
    )


async def story(board: Switchboard, request_id: str) -> Response:
    known = await board.tell_story(request_id)
    if not known.stories:
        among = f"or among the {known.kept:,} that ended last"
        raise Bad(
            404, f"There is no request {shown(request_id)} that is running or queued, {among}.", "not_found_error"
        )
    names = meant(request_id, (told.request for told in known.stories))
    if len(names) > 1:
        raise Bad(400, f"{shown(request_id)} is the beginning of several ids; write more of it.")
    found = [told for told in known.stories if told.request in names]
    live = {told.sequence: told for told in found if not told.ended}
    rows = (
        [row for row in await board.list_requests(like=request_id) if first_id(row[1].request) in live] if live else []
    )
    return answer(
        bodies.StoryAnswer(
            stories=found,
            stays=await staying.of_requests(board, live, rows) if rows else {},
            now={first_id(row.request): looking.request(instance, row) for instance, row in rows},
            words={
                told.sequence: bodies.StoryWords(how_it_is=how_it_is(told), entries=[*map(sentence, told.entries)])
                async for some in in_slices(found, _STORIES_AT_ONCE)
                for told in some
            },
            left_out=sum(known.left_out.get(name, 0) for name in names),
        )
    )


def _places(params: Mapping[str, str]) -> dict[str, int] | None:
    if not params.get("after"):
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
