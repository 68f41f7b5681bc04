"""What answers at the addresses that people try first: which routes there are."""

from __future__ import annotations

import msgspec
from fastapi import FastAPI
from fastapi.responses import Response

from llumnix.api import bodies
from llumnix.api.routes import PREFIX, ROUTES

OPENAI = {
    "GET /v1/models": "the models that are served",
    "POST /v1/chat/completions": "a chat, streamed or whole",
    "POST /v1/completions": "a completion",
    "GET /health": "200 while an instance takes requests",
    "GET /metrics": "counters for Prometheus",
    "GET /docs": "all routes",
}
PAGE = {"GET /llumnix/": "the live page, for browsers"}


def add_routes(app: FastAPI, *, openai: bool, admin: bool, page: bool) -> None:
    """An index of what this port serves, at `/`, and at the roots of the admin routes where they are here: below
    `/llumnix/` where that is the live page."""
    here = [route for route in ROUTES if admin and (page or not route.of_page)]
    routes = (OPENAI if openai else {}) | (PAGE if page else {})
    routes |= {f"{route.method} {PREFIX}{route.path}": route.text for route in here}
    roots = (*(() if page else ("/llumnix", "/llumnix/")), PREFIX, f"{PREFIX}/") if admin else ()

    async def answer() -> Response:
        return Response(msgspec.json.encode(bodies.IndexAnswer(routes=routes)), media_type="application/json")

    for path in ("/", *roots):
        app.add_api_route(path, answer, methods=["GET"], include_in_schema=False)
