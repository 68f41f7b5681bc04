"""The files of the page, as browsers get them: from memory, and again only when they have changed."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

FOLDER = Path(__file__).parent / "files"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}
_HEADERS = {
    "Cache-Control": "no-cache",  # ask again each time: 304 if it is the same
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def add_files(router: APIRouter) -> None:
    """They hold no data, so they need no key."""

    @router.get("/llumnix", include_in_schema=False)
    async def without_slash() -> Response:
        return RedirectResponse("llumnix/")  # from wherever a proxy has put us

    @router.get("/llumnix/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return _answer("index.html", request)

    @router.get("/llumnix/page/{name:path}", include_in_schema=False)
    async def file(request: Request, name: str) -> Response:
        return _answer(name, request)


@cache
def _files() -> dict[str, tuple[bytes, str]]:
    """Content and fingerprint, by name: what is not here is not served."""
    found = {}
    for path in FOLDER.rglob("*"):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            found[path.relative_to(FOLDER).as_posix()] = content, f'"{hashlib.sha256(content).hexdigest()[:20]}"'
    return found


def _answer(name: str, request: Request) -> Response:
    if name not in _files():
        return Response("There is no such file.", 404, media_type="text/plain", headers=_HEADERS)
    content, fingerprint = _files()[name]
    headers = {**_HEADERS, "ETag": fingerprint}
    if fingerprint in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_TYPES[Path(name).suffix])
