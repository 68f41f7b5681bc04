"""503 answers say when to come back."""

from __future__ import annotations

from typing import Any

from llumnix.engine.vllm.front_end.retry_after import AsgiMessage, RetryAfter


async def headers_of(status: int, *given: tuple[bytes, bytes], kind: str = "http") -> list[tuple[bytes, bytes]]:
    async def app(scope: AsgiMessage, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": list(given)})
        await send({"type": "http.response.body", "body": b""})

    sent: list[AsgiMessage] = []

    async def send(message: AsgiMessage) -> None:
        sent.append(message)

    async def receive() -> AsgiMessage:
        raise AssertionError("nobody asks for the body")

    await RetryAfter(app)({"type": kind}, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    headers: list[tuple[bytes, bytes]] = sent[0]["headers"]
    return headers


async def test_overload_says_when_to_come_back() -> None:
    assert (b"retry-after", b"1") in await headers_of(503)


async def test_hint_that_is_there_stays() -> None:
    assert await headers_of(503, (b"Retry-After", b"30")) == [(b"Retry-After", b"30")]


async def test_other_answers_are_left_alone() -> None:
    for status in (200, 404, 429, 500):
        assert await headers_of(status) == []


async def test_what_is_not_http_is_left_alone() -> None:
    assert await headers_of(503, kind="websocket") == []
