"""The door: what a request says of itself is noted, and what was declined behind it is answered here."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest

from llumnix.control.tenant_account import Allowance
from llumnix.engine.vllm.front_end.retry_after import AsgiMessage, AsgiSend, Receive
from llumnix.engine.vllm.front_end.ticket import Door, Ticket, current_ticket
from llumnix.policy.classes import Caller, Declined

LATER = Declined(429, "rate_limit_exceeded", "Too many.", 2.2)
NEVER = Declined(403, "permission_error", "Not you.")
ALLOWANCES = (Allowance("requests", 60.0, 0.6, 59.64), Allowance("tokens", 1000.0, 250.0, 45.0))

App = Callable[[Ticket, AsgiSend], Awaitable[None]]


async def ask(
    app: App, headers: dict[str, str] | None = None, kind: str = "http", tenant: str = ""
) -> list[AsgiMessage]:
    """What the client gets of an app that is told its ticket."""
    sent: list[AsgiMessage] = []

    async def inner(scope: AsgiMessage, receive: Receive, send: AsgiSend) -> None:
        ticket = current_ticket.get()
        assert ticket is not None
        await app(ticket, send)

    async def receive() -> AsgiMessage:
        raise AssertionError("nobody reads the body here")

    async def send(message: AsgiMessage) -> None:
        sent.append(message)

    encoded = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    await Door(inner, lambda: tenant)({"type": kind, "path": "/v1/completions", "headers": encoded}, receive, send)
    assert current_ticket.get() is None
    return sent


async def start(send: AsgiSend, status: int = 200) -> None:
    headers = [(b"content-type", b"text/event-stream"), (b"x-request-id", b"7")]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def say(send: AsgiSend, text: str, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": more})


def assert_declined(sent: list[AsgiMessage], declined: Declined) -> dict[bytes, bytes]:
    head, body = sent
    assert (head["type"], head["status"]) == ("http.response.start", declined.status)
    error = {"message": declined.why, "type": declined.kind, "param": None, "code": declined.status}
    assert json.loads(body["body"]) == {"error": error}
    assert not body.get("more_body")
    headers = dict(head["headers"])
    assert headers[b"content-length"] == str(len(body["body"])).encode()
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-request-id"] == b"7"
    return headers


@pytest.mark.parametrize(
    ("headers", "tenant_header", "caller"),
    [
        ({"Authorization": "Bearer k e y"}, "", Caller(key="k e y")),
        ({"authorization": "bearer key", "X-Llumnix-Class": "fast"}, "", Caller(key="key", cls="fast")),
        ({"Authorization": "Basic a2V5", "X-Tenant": "t"}, "", Caller()),
        ({"Authorization": "Bearer key", "X-Tenant": "t"}, "X-tenant", Caller(key="key", tenant="t")),
        ({}, "X-Tenant", Caller()),
    ],
)
async def test_ticket_says_what_the_headers_say(headers: dict[str, str], tenant_header: str, caller: Caller) -> None:
    seen: list[Caller] = []

    async def app(ticket: Ticket, send: AsgiSend) -> None:
        seen.append(ticket.caller)
        ticket.service_tier = "flex"
        seen.append(ticket.caller)

    await ask(app, headers, tenant=tenant_header)
    assert seen[0] == caller
    assert seen[1].tier == "flex"


def test_of_two_keys_the_one_counts_that_vllm_checks() -> None:
    headers = [(b"Authorization", b"Bearer mine"), (b"authorization", b"Bearer another's")]
    assert Ticket(headers, "").caller.key == "mine"


async def test_answer_goes_out_as_it_is_with_what_is_left_of_the_limits() -> None:
    async def app(ticket: Ticket, send: AsgiSend) -> None:
        await start(send)
        ticket.allowances = ALLOWANCES
        await say(send, "a")
        await say(send, "b", more=False)

    head, *bodies = await ask(app)
    assert [body["body"] for body in bodies] == [b"a", b"b"]
    assert head["status"] == 200
    assert dict(head["headers"]) == {
        b"content-type": b"text/event-stream",
        b"x-request-id": b"7",
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"59.640s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"250",
        b"x-ratelimit-reset-tokens": b"45.000s",
    }


async def test_stream_that_was_declined_before_its_first_word_is_a_refusal_and_nothing_else() -> None:
    """vLLM begins the answer to a stream before the engine has it, and puts an error into the stream."""

    async def app(ticket: Ticket, send: AsgiSend) -> None:
        await start(send)
        ticket.declined, ticket.allowances = LATER, ALLOWANCES
        await say(send, "data: an error of vLLM's")
        await say(send, "data: [DONE]", more=False)

    headers = assert_declined(await ask(app), LATER)
    assert headers[b"retry-after"] == b"3"
    assert headers[b"x-ratelimit-limit-requests"] == b"60"


async def test_refusal_that_comes_as_an_answer_of_vllms_has_our_words_and_headers() -> None:
    async def app(ticket: Ticket, send: AsgiSend) -> None:
        ticket.declined = NEVER
        await start(send, 403)
        await say(send, "vLLM's words", more=False)

    assert b"retry-after" not in assert_declined(await ask(app), NEVER)


async def test_answer_without_headers_is_declined_like_any_other() -> None:
    async def app(ticket: Ticket, send: AsgiSend) -> None:
        ticket.declined = NEVER
        await send({"type": "http.response.start", "status": 403})
        await say(send, "", more=False)

    head, _ = await ask(app)
    assert head["status"] == 403
    assert dict(head["headers"])[b"content-type"] == b"application/json"


async def test_what_has_begun_goes_on_whatever_is_declined_later() -> None:
    """The second prompt of a request, say."""

    async def app(ticket: Ticket, send: AsgiSend) -> None:
        await start(send)
        await say(send, "a")
        ticket.declined = LATER
        await say(send, "an error of vLLM's", more=False)

    head, *bodies = await ask(app)
    assert head["status"] == 200
    assert [body["body"] for body in bodies] == [b"a", b"an error of vLLM's"]


async def test_websockets_have_a_ticket_and_answers_of_their_own() -> None:
    async def app(ticket: Ticket, send: AsgiSend) -> None:
        ticket.declined = LATER
        await send({"type": "websocket.close", "code": 1013})

    assert await ask(app, kind="websocket") == [{"type": "websocket.close", "code": 1013}]
