"""What answers at the addresses that people try first: which routes there are."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import JSONResponse

OPENAI = {
    "GET /v1/models": "the models that are served",
    "POST /v1/chat/completions": "a chat, streamed or whole",
    "POST /v1/completions": "a completion",
    "GET /health": "200 while an instance takes requests",
    "GET /metrics": "counters for Prometheus",
    "GET /docs": "all routes",
}
ADMIN = {
    "GET /llumnix/v1/instances": "every instance with its load",
    "POST /llumnix/v1/instances": "starts more",
    "POST /llumnix/v1/instances/{id}/drain": "empties one, then stops it",
    "POST /llumnix/v1/instances/{id}/undrain": "lets it take requests again",
    "GET /llumnix/v1/requests": "every request, and where it is",
    "GET /llumnix/v1/requests/{id}": "one of them",
    "GET /llumnix/v1/migrations": "the last moves, with their reasons",
    "POST /llumnix/v1/migrations": "moves a request",
    "GET /llumnix/v1/drains": "how drains go and went",
    "GET /llumnix/v1/scaling": "size of the cluster",
}


def add_routes(app: FastAPI, *, openai: bool, admin: bool) -> None:
    """An index of what this port serves, at `/`, and at the roots of the admin routes where they are here."""
    routes = (OPENAI if openai else {}) | (ADMIN if admin else {})

    async def answer() -> JSONResponse:
        return JSONResponse({"server": "llumnix", "routes": routes})

    for path in ("/", *(("/llumnix", "/llumnix/", "/llumnix/v1", "/llumnix/v1/") if admin else ())):
        app.add_api_route(path, answer, methods=["GET"], include_in_schema=False)
