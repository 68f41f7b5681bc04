"""The admin API as documented: what it answers, what it refuses, who may ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from frame.admin import Admin
from frame.checked import Server
from frame.kinds import greedy
from frame.server import wait_for
from frame.stream import Streaming, open_session

pytestmark = pytest.mark.timeout(240)

API_KEY = "open-sesame"
FLAGS = ("--no-migration",)

INSTANCES_URL = "/llumnix/v1/instances"
REQUESTS_URL = "/llumnix/v1/requests"
MIGRATIONS_URL = "/llumnix/v1/migrations"


@asynccontextmanager
async def running(server: Server, name: str) -> AsyncIterator[tuple[Streaming, Admin]]:
    """A stream for as long as the block lasts; its client leaves then."""
    async with open_session(server.url, API_KEY) as session:
        stream = Streaming(session, greedy(1, 6000, words=30) | {"cache_salt": name}, name=name)
        await stream.reaches(5)
        yield stream, Admin(session)
        stream.task.cancel()
        await asyncio.gather(stream.task, return_exceptions=True)


async def goes_on(stream: Streaming) -> None:
    await stream.reaches(stream.output.tokens + 1)


def assert_error(response: httpx.Response, status: int, words: str) -> None:
    """OpenAI's error shape, with a sentence."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body["ok"] is False
    assert body["error"]["code"] == status
    assert body["error"]["message"] == body["reason"]
    assert words in body["reason"], body["reason"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"{}", "'request_id' is missing"),
        (b'{"request_id": 7, "target": "i1"}', "'request_id' has the wrong type"),
        (b'{"request_id": "cmpl-1", "target": ["i1"]}', "'target' has the wrong type"),
        (b'{"request_id": "cmpl-1", "target": "i1", "force": true}', "Unknown field 'force'"),
    ],
)
def test_malformed_order_to_move(server: Server, body: bytes, words: str) -> None:
    assert_error(server.post(MIGRATIONS_URL, content=body), 400, words)


@pytest.mark.parametrize("count", [b"0", b"-1", b"65", b"true", b"1.5", b'"2"', b"null"])
def test_impossible_count_of_instances(server: Server, count: bytes) -> None:
    assert_error(server.post(INSTANCES_URL, content=b'{"count": ' + count + b"}"), 400, "count")


@pytest.mark.parametrize("limit", ["0", "-1", "many", "1e3", "9" * 30, ""])
def test_impossible_limit_of_the_list(server: Server, limit: str) -> None:
    assert_error(server.get(MIGRATIONS_URL, params={"limit": limit}), 400, "limit")


def test_unknown_names_and_methods(server: Server) -> None:
    order = {"request_id": "cmpl-nobody", "target": "i1"}
    assert_error(server.post(MIGRATIONS_URL, json=order), 404, "no request 'cmpl-nobody'")
    assert_error(server.post(f"{INSTANCES_URL}/i99/drain"), 404, "no instance 'i99'")
    assert_error(server.post(f"{INSTANCES_URL}/i0/drain?keep=perhaps"), 400, "keep must be true or false")
    assert server.get("/llumnix/v1/nothing").status_code == 404
    assert server.post(REQUESTS_URL).status_code == 405


async def test_moves_that_make_no_sense(server: Server) -> None:
    async with running(server, "senseless") as (stream, admin):
        source = await admin.where(stream.id)
        assert source is not None
        for target, status, words in (
            ("i77", 404, "no instance 'i77'"),
            (source, 409, f"on {source} already"),
        ):
            answer = await asyncio.to_thread(
                server.post, MIGRATIONS_URL, json={"request_id": stream.id, "target": target}
            )
            assert_error(answer, status, words)
        await goes_on(stream)


async def test_answers_match_the_contract(server: Server) -> None:
    async with running(server, "contract") as (stream, admin):
        source = await admin.where(stream.id)
        target = "i1" if source == "i0" else "i0"
        (row,) = await asyncio.to_thread(server.requests)
        assert row.pop("output_tokens") >= 5
        assert row == {
            "id": stream.id,
            "instance": source,
            "priority": "normal",
            "prompt_tokens": row["prompt_tokens"],
            "state": "running",
            "migrations": 0,
            "movable": True,
            "why_pinned": None,
        }
        status, answer = await admin.migrate(stream.id, target)
        assert status == 200
        assert answer["ok"] is True
        assert (answer["source"], answer["target"]) == (source, target)
        assert answer["stages"] >= 1
        assert answer["bytes"] > 0
        assert answer["blocks_skipped"] == 0
        assert 0 <= answer["copy_ms"] < 30_000
        assert 0 < answer["handover_ms"] < 30_000
        assert 0 <= answer["downtime_ms"] < 30_000
        newest = (await asyncio.to_thread(server.migrations))[0]
        assert abs(newest.pop("at") - time.time()) < 60
        assert {
            key: newest[key] for key in ("request_id", "source", "target", "cause", "outcome", "stages", "bytes")
        } == {
            "request_id": stream.id,
            "source": source,
            "target": target,
            "cause": "by_hand",
            "outcome": "moved",
            "stages": answer["stages"],
            "bytes": answer["bytes"],
        }
        (row,) = await asyncio.to_thread(server.requests)
        assert (row["instance"], row["migrations"]) == (target, 1)
        await goes_on(stream)
    rows = await asyncio.to_thread(server.instances)
    assert {frozenset(row) for row in rows} == {
        frozenset(
            {
                *("id", "state", "pid", "node", "total_blocks", "free_blocks", "running", "waiting", "preemptions"),
                *(
                    "block_tokens",
                    "freeness",
                    "load",
                    "migrations_in",
                    "migrations_out",
                    "preemptions_avoided",
                    "recompute_tokens_saved",
                ),
                *("state_blocks", "prefill_tokens", "first_token_s", "token_s", "step_cost", "slowdown", "role"),
            }
        )
    }
    # A load report counts the move a moment after it was answered.
    wait_for(lambda: server.instance(source)["migrations_out"] >= 1, "the source's count")  # type: ignore[arg-type]
    wait_for(lambda: server.instance(target)["migrations_in"] >= 1, "the target's count")
    scheduler = server.get(INSTANCES_URL).json()["scheduler"]
    assert scheduler["state"] == "running"
    assert scheduler["pid"] > 0


def test_without_the_key_nothing_is_told_and_nothing_done(server: Server) -> None:
    for method, path in (
        ("GET", INSTANCES_URL),
        ("GET", REQUESTS_URL),
        ("GET", MIGRATIONS_URL),
        ("POST", MIGRATIONS_URL),
        ("POST", INSTANCES_URL),
        ("POST", f"{INSTANCES_URL}/i0/drain"),
        ("GET", "/v1/models"),
    ):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {API_KEY}"}):
            with httpx.Client(base_url=server.url, headers=headers) as stranger:
                assert stranger.request(method, path).status_code == 401, (method, path, headers)
    with httpx.Client(base_url=server.url) as stranger:
        assert stranger.get("/health").status_code == 200
    assert [row["state"] for row in server.instances()] == ["running", "running"]


async def test_drain_that_keeps_the_instance(server: Server) -> None:
    async with running(server, "kept") as (stream, admin):
        source = await admin.where(stream.id)
        answer = await asyncio.to_thread(server.post, f"{INSTANCES_URL}/{source}/drain?keep=true")
        assert answer.status_code == 202
        await asyncio.to_thread(
            wait_for, lambda: server.instance(str(source))["state"] == "draining", "a draining instance"
        )
        await asyncio.to_thread(
            wait_for, lambda: [row["instance"] for row in server.requests()] != [source], "an empty instance"
        )
        refused = await asyncio.to_thread(server.post, MIGRATIONS_URL, json={"request_id": stream.id, "target": source})
        assert_error(refused, 409, "draining")
        await goes_on(stream)
    row = server.instance(str(source))
    assert (row["state"], row["running"]) == ("draining", 0)
    causes = [row["cause"] for row in server.migrations() if row["request_id"] == stream.id]
    assert causes[0] == "drain"


async def test_new_instances_take_over_and_a_drained_one_stops(server: Server) -> None:
    """Follows the test above: one instance is draining for good, the other one serves."""
    (serving,) = (row["id"] for row in server.instances())
    assert server.post(INSTANCES_URL, json={"count": 1}).status_code == 202
    starting = wait_for(lambda: server.instances("starting") or server.instances("running")[1:], "a start")[0]["id"]
    if server.instance(starting)["state"] == "starting":
        early = server.post(f"{INSTANCES_URL}/{starting}/drain")
        assert early.status_code in (202, 409)
    new = wait_for(lambda: [row["id"] for row in server.instances() if row["id"] != serving], "a new instance")[0]
    async with running(server, "stopped") as (stream, admin):
        if await admin.where(stream.id) != serving:
            assert (await admin.migrate(stream.id, serving))[0] == 200
        answer = await asyncio.to_thread(server.post, f"{INSTANCES_URL}/{serving}/drain")
        assert (answer.status_code, answer.json()["state"]) == (202, "draining")
        await asyncio.to_thread(
            wait_for, lambda: server.instance(serving)["state"] == "stopped", "the end of the drained instance"
        )
        assert await admin.where(stream.id) == new
        order = {"request_id": stream.id, "target": serving}
        assert_error(await asyncio.to_thread(server.post, MIGRATIONS_URL, json=order), 409, "stopped")
        await goes_on(stream)


def test_page_of_all_routes_needs_nothing_from_the_internet(server: Server) -> None:
    page = server.get("/docs").text
    assert "<title>Llumnix - Swagger UI</title>" in page
    for part in ("/static/swagger-ui-bundle.js", "/static/swagger-ui.css"):
        assert part in page
        assert server.get(part).status_code == 200
    assert "GET /llumnix/v1/instances" in server.get("/").json()["routes"]


def test_metrics_tell_of_instances_that_came_and_went(server: Server) -> None:
    text = server.metrics()
    for name in (
        "vllm:num_requests_running",
        "vllm:generation_tokens_total",
        "vllm:time_to_first_token_seconds_count",
        "llumnix_freeness",
        "llumnix_waiting",
        "llumnix_running",
        "llumnix_preemptions_total",
        'llumnix_migrations_total{cause="by_hand",outcome="moved",stayed_why=""}',
        "llumnix_migrated_bytes_total",
        "llumnix_migration_downtime_seconds_bucket",
        "llumnix_dispatches_total",
        "llumnix_replays_total",
        "llumnix_preemptions_avoided_total",
        "llumnix_recompute_tokens_saved_total",
        'llumnix_instances{state="serving"}',
        "llumnix_instance_seconds_total",
        'llumnix_scaling_decisions_total{action="start"}',
    ):
        assert name in text, name
    live = {row["id"] for row in server.instances("running", "draining")}
    wait_for(lambda: _labelled(server.metrics(), "llumnix_running") == live, "gauges of live instances only")


def _labelled(text: str, gauge: str) -> set[str]:
    lines = [line for line in text.splitlines() if line.startswith(gauge + "{")]
    return {line.split('instance_id="')[1].split('"')[0] for line in lines}
