"""What all admin routes share: who may ask, bodies that are checked, and answers, refusals in OpenAI's error shape."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from llumnix.api import bodies
from llumnix.engine.vllm.front_end.client_ids import is_text
from llumnix.engine.vllm.front_end.origin import KnownHosts
from llumnix.engine.vllm.front_end.slices import in_slices

_MAX_BODY_BYTES = 1 << 20
_LONGEST_ECHO = 100  # characters of what a client sent, in a refusal


@dataclass(frozen=True, slots=True)
class Bad(Exception):
    """Becomes an answer in OpenAI's error shape."""

    status: int
    message: str
    kind: str = "invalid_request_error"


class Guard:
    """Lets in whoever has the key; without one that is set, whoever is no web page of somebody else. Turns `Bad` into
    an answer."""

    def __init__(self, keys: list[str], hosts: KnownHosts) -> None:
        from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

        self._middleware = AuthenticationMiddleware(_no_app, keys) if keys else None
        self._hosts = hosts

    async def answer(self, request: Request, act: Callable[[], Awaitable[Response]]) -> Response:
        try:
            self._check(request)
            return await act()
        except Bad as bad:
            return _error(bad)

    def _check(self, request: Request) -> None:
        headers = request.headers
        if self._middleware is not None:
            if not self._middleware.verify_token(headers):
                raise Bad(401, "The admin routes need the API key.", "authentication_error")
        elif why := self._hosts.why_foreign(*map(headers.getlist, ("host", "origin", "sec-fetch-site"))):
            raise Bad(403, f"The request is refused: {why}.", "permission_error")
        if _declared_bytes(headers.get("content-length", "0")) > _MAX_BODY_BYTES:
            raise _too_large()


async def _no_app(*_: Any) -> None:
    raise AssertionError("only its check of the key is used")


def _error(bad: Bad) -> Response:
    error = bodies.ErrorDetail(message=bad.message, type=bad.kind, code=bad.status)
    return answer(bodies.RefusalAnswer(reason=bad.message, error=error), bad.status)


def answer(body: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def refuse_in_our_shape(app: FastAPI) -> None:
    """What no route of the app has taken, such as a path that there is not. vLLM's app does so by itself."""

    async def refuse(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _error(
            Bad(
                error.status_code,
                sentence(error.detail),
                "not_found_error" if error.status_code == 404 else "invalid_request_error",
            )
        )

    app.add_exception_handler(HTTPException, refuse)


async def body_of(request: Request, fields: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with exactly these fields, of these types; one that may be null may be left out. Raises Bad."""
    try:
        body = json.loads(await _whole_body(request))
    except (ValueError, RecursionError) as error:
        raise Bad(400, f"The body is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise Bad(400, "The body must be a JSON object.")
    for name, kind in fields.items():
        if name not in body and isinstance(None, kind):
            body[name] = None
        if name not in body:
            raise Bad(400, f"The field {name!r} is missing.")
        if not isinstance(body[name], kind):
            raise Bad(400, f"The field {name!r} has the wrong type.")
        if isinstance(body[name], str) and not is_text(body[name]):
            raise Bad(400, f"The field {name!r} has half a character in it: {shown(body[name])}.")
    if unknown := sorted(set(body) - set(fields)):
        raise Bad(400, f"Unknown field {shown(unknown[0])}; known are {', '.join(map(repr, fields))}.")
    return body


def query_of(request: Request, *names: str) -> Mapping[str, str]:
    """The parameters behind the question mark. Raises Bad for one that is none of these: else it would be ignored."""
    if unknown := sorted(set(request.query_params) - set(names)):
        raise Bad(400, f"Unknown parameter {shown(unknown[0])}; known are {', '.join(map(repr, names))}.")
    return request.query_params


def count_of(params: Mapping[str, str], name: str, usual: int, most: int) -> int:
    """A parameter that is a number from 1 on. Raises Bad."""
    text = params.get(name, str(usual))
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and 1 <= int(text) <= most):
        raise Bad(400, f"{name} must be a number from 1 to {most}, not {shown(text)}.")
    return int(text)


async def _whole_body(request: Request) -> bytes:
    """Raises Bad as soon as it is too large: a client need not say beforehand how much it sends."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


def _declared_bytes(content_length: str) -> int:
    if not content_length.isdecimal():
        return 0  # the HTTP server has refused it already
    return int(content_length) if len(content_length) < len(str(_MAX_BODY_BYTES)) + 2 else _MAX_BODY_BYTES + 1


def _too_large() -> Bad:
    return Bad(413, f"The body has more than {_MAX_BODY_BYTES} bytes; no admin route needs so many.")


def listing(name: str, rows: Sequence[Any], shape: Callable[[Any], Any] = lambda row: row) -> Response:
    """`{name: rows}`, each as `shape` makes it."""
    return StreamingResponse(_listed(name, rows, shape), media_type="application/json")


async def _listed(name: str, rows: Sequence[Any], shape: Callable[[Any], Any]) -> AsyncIterator[bytes]:
    before = f'{{"{name}":['.encode()
    async for some in in_slices(rows):
        yield before + msgspec.json.encode([shape(row) for row in some])[1:-1]
        before = b","
    yield b"]}" if rows else before + b"]}"


def shown(value: object) -> str:
    """What a client sent, for a sentence, which need not be as long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_ECHO else f"{text[:_LONGEST_ECHO]}…"


def sentence(words: str) -> str:
    """Ends with a full stop, and begins with a capital letter unless a name such as `i0` comes first."""
    first = words.partition(" ")[0]
    return f"{words[:1].upper() if first.isalpha() else words[:1]}{words[1:]}."
