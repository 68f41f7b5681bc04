"""The routes of the page's data: streams, and the past."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from llumnix.engine.vllm.front_end.admin.answers import Bad, Guard, answer, query_of, shown
from llumnix.engine.vllm.front_end.page.feed import MOST_VIEWERS, Feed
from llumnix.engine.vllm.front_end.page.page import Page
from llumnix.engine.vllm.front_end.page.stream import Watching
from llumnix.types import InstanceId

_BUSY = "service_unavailable_error"


def add_streams(router: APIRouter, guard: Guard, page: Page) -> None:
    @router.get("/watch")
    async def cluster(request: Request) -> Response:
        return await guard.answer(request, lambda: _watch(page.cluster))

    @router.get("/watch/requests")
    async def requests(request: Request) -> Response:
        return await guard.answer(request, lambda: _watch(page.requests))

    @router.get("/history")
    async def history(request: Request) -> Response:
        return await guard.answer(request, lambda: _history(page, query_of(request, "instance").get("instance")))


async def _watch(feed: Feed) -> Response:
    if feed.is_over:
        raise Bad(503, "The server is shutting down.", _BUSY)
    if feed.is_full:
        raise Bad(503, f"{MOST_VIEWERS} viewers watch already, and no more can; close a page somewhere.", _BUSY)
    return Watching(feed)


async def _history(page: Page, instance: str | None) -> Response:
    if instance is None:
        return answer(page.history.of_cluster())
    found = page.history.of(InstanceId(instance))
    if found is None:
        raise Bad(404, f"There is no instance {shown(instance)} that takes requests.", "not_found_error")
    return answer(found)
