"""The admin route that begins and ends the recording of a run."""

from __future__ import annotations

from fastapi.responses import Response

from llumnix.api import bodies
from llumnix.engine.vllm.front_end.admin.answers import Bad, answer
from llumnix.engine.vllm.front_end.switchboard import Switchboard


async def record(board: Switchboard, on: bool) -> Response:
    """By all front ends; one that does not answer, as soon as it can."""
    recorder = board.log.recorder
    if recorder is None:
        raise Bad(404, "The server was started without --record.", "not_found_error")
    folder = recorder.switch(on)
    await board.all_others("record")
    return answer(bodies.RecordAnswer(on=on, folder=folder or None))
