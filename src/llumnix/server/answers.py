"""What all admin routes share: the key, bodies that are checked, and refusals in OpenAI's error shape."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse


@dataclass(frozen=True, slots=True)
class Bad(Exception):
    """Becomes an answer in OpenAI's error shape."""

    status: int
    message: str
    kind: str = "invalid_request_error"


class Guard:
    """Checks the key and turns `Bad` into an answer."""

    def __init__(self, keys: list[str]) -> None:
        from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

        self._middleware = AuthenticationMiddleware(_no_app, keys) if keys else None

    async def answer(self, request: Request, act: Any) -> JSONResponse:
        if self._middleware is not None and not self._middleware.verify_token(request.headers):
            return _error(Bad(401, "The admin routes need the API key.", "authentication_error"))
        try:
            answer: JSONResponse = await act()
        except Bad as bad:
            return _error(bad)
        return answer


async def _no_app(*_: Any) -> None:
    raise AssertionError("only its check of the key is used")


def _error(bad: Bad) -> JSONResponse:
    error = {"message": bad.message, "type": bad.kind, "param": None, "code": bad.status}
    return JSONResponse({"ok": False, "reason": bad.message, "error": error}, bad.status)


async def body_of(request: Request, fields: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with exactly these fields, of these types. Raises Bad."""
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise Bad(400, f"The body is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise Bad(400, "The body must be a JSON object.")
    for name, kind in fields.items():
        if name not in body:
            raise Bad(400, f"The field {name!r} is missing.")
        if not isinstance(body[name], kind):
            raise Bad(400, f"The field {name!r} has the wrong type.")
    if unknown := sorted(set(body) - set(fields)):
        raise Bad(400, f"Unknown field {unknown[0]!r}; known are {', '.join(map(repr, fields))}.")
    return body


def sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."
