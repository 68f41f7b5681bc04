"""The admin routes of a server with `--classes`: what becomes of each class, and reading the file again."""

from __future__ import annotations

import asyncio

from fastapi.responses import Response

from llumnix.api import bodies
from llumnix.classes_file import read_classes
from llumnix.engine.vllm.front_end.admin.answers import Bad, answer, listing
from llumnix.engine.vllm.front_end.admitting import AdmittingClient
from llumnix.engine.vllm.front_end.switchboard import Switchboard
from llumnix.errors import UsageError


async def rows(board: Switchboard) -> Response:
    _admitting(board)
    return listing("classes", await board.list_classes())


async def reload(board: Switchboard) -> Response:
    """All front ends go by it from now on; one that does not answer, as soon as it can."""
    client = _admitting(board)
    try:
        classes = await asyncio.to_thread(read_classes, board.spec.cluster.classes)
    except UsageError as error:
        raise Bad(400, str(error)) from error
    client.in_force.write(classes)
    client.change_classes()
    await board.all_others("classes")
    return answer(bodies.ReloadedAnswer(classes=len(classes.classes), tenants=len(classes.tenants)))


def _admitting(board: Switchboard) -> AdmittingClient:
    client = board.client
    if not isinstance(client, AdmittingClient):
        raise Bad(404, "The server was started without --classes.", "not_found_error")
    return client
