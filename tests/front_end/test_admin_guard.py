"""Every admin route against everybody who should not reach it, and against what nobody should send."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

pytest.importorskip("vllm")

from admin_board import Board, app_of, ask
from fastapi import FastAPI
from request_rows import row

from llumnix.config import ClusterConfig
from llumnix.engine.vllm.front_end.admin.routes import add_routes
from llumnix.engine.vllm.front_end.serve import add_our_routes, admin_app
from llumnix.report.records import MigrationRecord
from llumnix.types import InstanceId

BODIES: dict[str, dict[str, Any]] = {
    "POST /migrations": {"request_id": "cmpl-1", "target": "i1"},
    "POST /instances": {"count": 1},
}
PREFIX = "/llumnix/v1"


def all_routes() -> list[tuple[str, str]]:
    """As the app tells them, so that a new one cannot be forgotten here."""
    paths = app_of(Board()).openapi()["paths"]
    return [
        (method.upper(), path.removeprefix(PREFIX).replace("{instance}", "i0"))
        for path, methods in paths.items()
        for method in methods
    ]


ROUTES = all_routes()


def refusal(answer: httpx.Response, status: int) -> str:
    """The sentence of a refusal in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == status
    message: str = error["message"]
    assert message.endswith(".")
    assert len(message) < 500
    return message


def test_there_are_routes_to_walk() -> None:
    assert ("POST", "/instances/i0/drain") in ROUTES
    assert len(ROUTES) >= 8


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:3000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example:8000"},
        {"Host": "evil.example:8000", "Origin": "http://evil.example:8000", "Sec-Fetch-Site": "same-origin"},
    ],
)
async def test_page_of_a_stranger(method: str, path: str, headers: dict[str, str]) -> None:
    board = Board()
    assert "refused" in refusal(await ask(board, method, path, headers=headers, json={}), 403)
    assert board.asked == []


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_whoever_has_the_key_may_come_from_anywhere(method: str, path: str) -> None:
    headers = {"Authorization": "Bearer sesame", "Host": "evil.example", "Origin": "http://evil.example"}
    board = Board()
    board.scheduler_answer = None
    board.client.members.by_id.clear()
    board.strangers.starting.clear()
    answer = await ask(board, method, path, keys=["sesame"], headers=headers, json=BODIES.get(f"{method} {path}"))
    assert answer.status_code not in (401, 403)
    del headers["Authorization"]
    assert "key" in refusal(await ask(Board(), method, path, keys=["sesame"], headers=headers), 401)


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_body_that_is_said_to_be_huge(method: str, path: str) -> None:
    board = Board()
    for size in ("1048577", "9" * 5000):
        headers = {"Content-Length": size}
        assert "bytes" in refusal(await ask(board, method, path, headers=headers, content=b""), 413)
    assert board.asked == []


@pytest.mark.parametrize("name", BODIES)
async def test_body_that_never_ends_is_given_up(name: str) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 16
            yield b"[" * (1 << 16)

    method, path = name.split()
    assert "bytes" in refusal(await _stream(method, path, endless()), 413)
    assert sent <= 2 << 20


async def _stream(method: str, path: str, content: AsyncIterator[bytes]) -> Any:
    """httpx's own transport reads a body to its end before it sends: this one passes it on piece by piece."""
    status, body = 0, b""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": await anext(content), "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, body
        status = message.get("status", status)
        body += message.get("body", b"")

    scope = {"type": "http", "method": method, "path": PREFIX + path, "query_string": b"", "headers": []}
    await app_of(Board())(scope, receive, send)  # type: ignore[arg-type]
    return httpx.Response(status, content=body)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/migrations?limit=" + "9" * 5000),
        ("GET", "/migrations?limit=0"),
        ("GET", "/migrations?limit=1000001"),
        ("GET", "/migrations?limit=²"),
        ("GET", "/migrations?limit=٣"),
        ("POST", "/instances/i0/drain?timeout_s=" + "9" * 5000),
        ("POST", "/instances/i0/drain?keep=" + "x" * 5000),
    ],
)
async def test_numbers_beyond_all_sense(method: str, path: str) -> None:
    board = Board()
    refusal(await ask(board, method, path), 400)
    assert board.asked == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/instances", '{"count": ' + "9" * 4000 + "}", 400),
        ("/instances", '{"count": ' + "9" * 5000 + "}", 400),
        ("/instances", json.dumps({"count": 1, "x" * 5000: 1}), 400),
        ("/migrations", json.dumps({"request_id": "x" * 5000, "target": "i1"}), 404),
        ("/instances/" + "x" * 5000 + "/drain", "", 404),
    ],
)
async def test_refusal_does_not_repeat_all_that_was_sent(path: str, body: str, status: int) -> None:
    refusal(await ask(Board(), "POST", path, content=body), status)


async def test_long_lists_come_whole_and_never_keep_the_loop_for_long() -> None:
    board = Board()
    board.rows = [(InstanceId("i0"), row(f"r{n}", f"cmpl-{n:032d}-0")) for n in range(10_000)]
    board.records = [
        MigrationRecord(
            at_s=float(n),
            request_id=f"chatcmpl-{n:032d}",
            source=InstanceId("i1"),
            target=InstanceId("i2"),
            reason="freeness 1.2 against 44; 3.1 and 40 after the move",
            outcome="moved",
        )
        for n in range(20_000)
    ]
    for path, name, count in (("/requests", "requests", 10_000), ("/migrations?limit=1000000", "migrations", 20_000)):
        turns = asyncio.create_task(_turns_of_the_loop())
        answer = await ask(board, "GET", path)
        turns.cancel()
        rows = answer.json()[name]
        assert len(rows) == count
        assert await turns >= count // 500, "the loop did not turn between two slices"
    assert rows[7]["request_id"] == f"chatcmpl-{7:032d}"
    assert rows[7]["downtime_ms"] is None


async def _turns_of_the_loop() -> int:
    turns = 0
    try:
        while True:
            turns += 1
            await asyncio.sleep(0)
    except asyncio.CancelledError:
        return turns


async def test_whether_it_is_alive_is_told_to_everybody_also_when_no_instance_serves() -> None:
    board = Board()
    board.client.members.by_id.clear()
    answer = await ask(board, "GET", "/alive", keys=["open-sesame"], headers={"Host": "10.0.3.7:8000"})
    assert (answer.status_code, answer.json()) == (200, {"alive": True})


async def test_whether_it_is_alive_is_told_on_the_port_of_clients_also_where_the_admin_routes_have_their_own() -> None:
    """A kubelet asks there, and would end a server that does not answer again and again."""
    board = Board()
    board.spec.admin_socket = object()
    app = FastAPI()
    add_our_routes(app, argparse.Namespace(), board, None)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://10.0.3.7:8000") as client:
        answers = [await client.get(f"{PREFIX}/{route}") for route in ("alive", "instances")]
    assert [answer.status_code for answer in answers] == [200, 404]


async def test_a_name_that_a_proxy_before_a_unix_socket_passes_on_is_known_only_when_it_is_allowed() -> None:
    board = Board()
    board.spec.cluster = ClusterConfig(admin_allowed_hosts="llm.example")
    app = FastAPI()
    add_routes(app, board, argparse.Namespace(api_key=None, host=None, uds="/run/llm.sock"), None)  # type: ignore[arg-type]
    statuses = {}
    for host in ("localhost", "llm.example", "evil.example"):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{host}") as client:
            statuses[host] = (await client.get(f"{PREFIX}/requests")).status_code
    assert statuses == {"localhost": 200, "llm.example": 200, "evil.example": 403}


@pytest.mark.parametrize(
    ("origin", "may"),
    [
        ("https://ops.example", True),
        ("http://ops.example:8080", True),
        ("https://ops.example.evil", False),
        ("https://opsxexample", False),
        ("https://evil", False),
    ],
)
async def test_pages_of_allowed_hosts_may_call_a_port_of_its_own(origin: str, may: bool) -> None:
    """Of other pages neither the browser nor the server lets any."""
    board = Board()
    board.spec.cluster = ClusterConfig(admin_port=9000, admin_allowed_hosts="ops.example")
    args = argparse.Namespace(api_key=None, host="127.0.0.1", uds=None)
    app = admin_app(args, board, None)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:9000") as client:
        asking = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        asking |= {"Access-Control-Request-Headers": "content-type"}
        before = await client.options(f"{PREFIX}/instances", headers=asking)
        answer = await client.get(f"{PREFIX}/requests", headers={"Origin": origin})
    assert [each.headers.get("access-control-allow-origin") == origin for each in (before, answer)] == [may] * 2
    assert (before.status_code, answer.status_code) == ((200, 200) if may else (400, 403))
