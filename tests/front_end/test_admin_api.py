"""The admin API as its table and its structs have it: nobody finds more at a server, or less."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

pytest.importorskip("vllm")

from admin_board import Board, app_of, ask
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from request_rows import row

from admin_answers import drained
from llumnix.api.bodies import JournalAnswer, RefusalAnswer, StoryAnswer
from llumnix.api.routes import OPENAPI, PREFIX, ROUTES, Route
from llumnix.control.class_counts import ClassRow
from llumnix.control.scaling import ScalingMode, ScalingStep
from llumnix.engine.vllm.front_end import index
from llumnix.engine.vllm.front_end.members import Member
from llumnix.engine.vllm.front_end.vllm_routes import paths
from llumnix.journal.entries import (
    KINDS,
    DrainNoted,
    InstanceNoted,
    RefusalNoted,
    RoleNoted,
    RoundNoted,
    ScalingNoted,
)
from llumnix.journal.stories import Stories
from llumnix.journal.words import story_lines
from llumnix.policy.dispatch import DispatchReason, Judged
from llumnix.policy.pairing import Rejection, Why
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.report.records import MigrationRecord
from llumnix.types import InstanceId, Role
from llumnix.wire import base, news, to_front_end
from move_outcomes import outcome
from recorded_run import ended, write_run

I0, I1 = InstanceId("i0"), InstanceId("i1")
CLASSES = Path(__file__).parent.parent / "vllm" / "classes.yaml"
ASKED: dict[str, Any] = {
    "POST /instances": {"json": {"count": 1}},
    "POST /instances/{id}/role": {"json": {"role": "decode"}},
    "POST /migrations": {"json": {"request_id": "cmpl-1", "target": "i1"}},
    "POST /record": {"json": {"on": True}},
    "POST /whatif": {"json": {"tries": ["instances=5"]}},
}
COUNTS = {
    *(
        "block_tokens",
        "state_blocks",
        "total_blocks",
        "free_blocks",
        "running",
        "waiting",
        "preemptions",
        "preemptions_avoided",
    ),
    *("recompute_tokens_saved", "migrations_in", "migrations_out", "prefill_tokens"),
}
INSTANCE = {
    "id",
    "state",
    "role",
    "pid",
    "node",
    "freeness",
    "load",
    "first_token_s",
    "token_s",
    "step_cost",
    "slowdown",
    *COUNTS,
}
MOVED = {"source", "target", "stages", "bytes", "blocks_skipped", "copy_ms", "handover_ms", "downtime_ms"}
KEYS: dict[str, set[str]] = {
    "GET ": {"server", "routes"},
    "GET /alive": {"alive"},
    "GET /instances": {"instances", "scheduler", "scaling", "freeness_limits"},
    "POST /instances": {"ok", "starting"},
    "POST /instances/{id}/drain": {"ok", "id", "state"},
    "POST /instances/{id}/undrain": {"ok", "id", "state"},
    "GET /classes": {"classes"},
    "POST /instances/{id}/role": {"ok", "id", "role"},
    "POST /classes/reload": {"ok", "classes", "tenants"},
    "POST /record": {"ok", "on", "folder"},
    "GET /whatif": {"running", "run"},
    "POST /whatif": {"running", "run"},
    "DELETE /whatif": {"running", "run"},
    "GET /requests": {"requests"},
    "GET /requests/{id}": {"requests"},
    "GET /migrations": {"migrations"},
    "GET /requests/{id}/story": {"stories", "left_out", "stays", "now", "words"},
    "GET /why-not": {"moves", "instances", "starts"},
    "GET /journal": {"entries", "cursor", "lost"},
    "POST /migrations": {"ok", *MOVED},
    "GET /drains": {"drains"},
    "GET /history": {"of", "at", "series"},
    "GET /scaling": {
        *("mode", "min_instances", "max_instances", "serving", "draining", "starting", "failing", "now", "last"),
        *("starts", "drains", "instance_seconds", "watched_s", "mean_instances"),
    },
}
"""What clients of the first version rely on."""


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """Of everything there is some."""
    board = Board()
    write_run(tmp_path / "run", [ended("cmpl-0")])
    board.have_recorder(tmp_path / "run")
    for number, name in enumerate((I0, I1)):
        info = base.InstanceInfo(id=name, index=number, slot=number, pid=9, node="here", control="", data="")
        load = InstanceSnapshot(id=name, at=1.0, seq=1, total_blocks=100, free_blocks=60, running=2)
        board.client.members.by_id[name] = Member(info, load)
    del board.client.members.by_id["i2"]
    board.strangers.starting["i8"] = news.InstanceStarting(instance=InstanceId("i8"), pid=8, node="here")
    board.rows = [(I0, row("r0", "cmpl-1-0"))]
    board.class_rows = [ClassRow(cls="quick", tenant="free", held=1, ttft_met=2, refused={"503": 3})]
    moved = MigrationRecord(
        at_s=1.0, request_id="cmpl-1", source=I0, target=I1, outcome="moved", copy_ms=1.0, downtime_ms=7.3
    )
    board.records = [moved]
    note_everything(board.stories)
    board.answers = {"r0": to_front_end.MigrateAnswer(query=1, status=200, record=moved)}
    step = ScalingStep(at=9.0, reason="freeness 3 below 10", start=1, carried_out=False)
    counts = dict.fromkeys(("draining", "starting", "failing", "starts", "drains"), 0)
    sizes: dict[str, Any] = {"min_instances": 1, "max_instances": 4, "serving": 2}
    sizes |= {"instance_seconds": 50.0, "watched_s": 20.0}
    board.scaling = to_front_end.ScalingStatus(mode=ScalingMode.ADVISE, now="", last=step, **sizes, **counts)
    return board


def note_everything(stories: Stories) -> None:
    """One entry of every kind."""
    reason = DispatchReason("freeness", (Judged(I0, 21.5), Judged(I1, 3.0)), 2)
    story = stories.began(1.0, "cmpl-1", "cmpl-1-0-7f", 5)
    story.parked(1.0, "no instance can take it")
    story.dispatched(1.0, reason)
    story.scheduled(2.0)
    story.token(3.0)
    story.stayed(4.0, outcome(I0, I1, why_not="the target has no room"))
    story.moved(5.0, outcome(I0, I1), 0.25)
    story.preempted(6.0)
    story.token(7.0)
    story.replayed(8.0, reason, "i1 is gone", 2)
    story.ended(9.0, "length", 2)
    stories.over(story)
    nothing = Rejection(I0, None, Why.NOTHING_TO_GIVE)
    step = ScalingStep(at=9.0, reason="freeness 3 below 10", start=1, carried_out=False)
    drain = DrainNoted(drained("i0", each=1))
    of_cluster = InstanceNoted(serves=True), RoundNoted((nothing,)), ScalingNoted(step), RoleNoted(Role.DECODE), drain
    for noted in (RefusalNoted(503), *of_cluster):
        stories.journal.note(10.0, noted, instance=I0)


async def answer_of(board: Board, route: Route) -> httpx.Response:
    if route.path == "/drains":
        board.scheduler_answer = to_front_end.DrainReports(query=1, reports=(drained("i0", each=1),))  # type: ignore[assignment]
    if route.path.startswith("/classes"):
        board.have_classes(CLASSES)
    if not route.path:
        return await _index()
    asked = f"{route.method} {route.path}"
    path = route.path.replace("{id}", "cmpl-1" if "/requests" in route.path else "i0")
    return await ask(board, route.method, path, **ASKED.get(asked, {}))


async def _index() -> httpx.Response:
    app = FastAPI()
    index.add_routes(app, openai=True, admin=True, page=True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        return await client.get(PREFIX)


ANSWERED = pytest.mark.parametrize(
    "route",
    [route for route in ROUTES if route.answer and not route.streams],
    ids=lambda route: f"{route.method}{route.path}",
)


@ANSWERED
async def test_answer_is_what_the_table_says(board: Board, route: Route) -> None:
    answer = await answer_of(board, route)
    assert answer.status_code == route.status
    body = answer.json()
    assert json.loads(msgspec.json.encode(msgspec.json.decode(answer.content, type=route.answer))) == body
    assert set(body) == KEYS[f"{route.method} {route.path}"]


@ANSWERED
async def test_answer_is_what_the_openapi_document_says(board: Board, route: Route) -> None:
    document = json.loads(OPENAPI.read_text())
    said = document["paths"][PREFIX + route.path][route.method.lower()]["responses"][str(route.status)]
    schema = said["content"]["application/json"]["schema"] | {"components": document["components"]}
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate((await answer_of(board, route)).json())


async def test_rows_have_the_keys_that_they_always_had(board: Board) -> None:
    rows = {one["id"]: set(one) for one in (await ask(board, "GET", "/instances")).json()["instances"]}
    assert rows == {"i0": INSTANCE, "i1": INSTANCE} | {name: INSTANCE | {"why"} for name in ("i6", "i8", "i9")}
    (request,) = (await ask(board, "GET", "/requests")).json()["requests"]
    facts = {"priority", "prompt_tokens", "output_tokens", "migrations", "movable", "why_pinned"}
    assert set(request) == {"id", "instance", "state", *facts}
    (moved,) = (await ask(board, "GET", "/migrations")).json()["migrations"]
    assert set(moved) == {"at", "request_id", "cause", "reason", "outcome", "stayed_by", "move_id", *MOVED}


async def test_a_request_that_goes_on_is_told_why_it_does_not_move(board: Board) -> None:
    """It was replayed once, so its engine has it under another id; a sequence whose instance is not known has none."""
    for number in range(2):
        board.stories.began(50.0, "cmpl-2", f"cmpl-2-{number}-7f", 5).stayed(60.0, outcome(I0, I1, why_not="no room"))
    board.rows = [(I0, row("cmpl-2-0-7f~1", "cmpl-2-0")), (I1, row("cmpl-2-1-7f", "cmpl-2-1"))]
    board.client.members.known = {I0: board.client.members.by_id[I0]}
    answer = msgspec.json.decode((await ask(board, "GET", "/requests/cmpl-2/story")).content, type=StoryAnswer)
    assert [(told.sequence, told.ended) for told in answer.stories] == [
        *(("cmpl-2-0-7f", False), ("cmpl-2-1-7f", False)),
    ]
    why = "i0 gives nothing away: its freeness 30 is not below 3 (--migrate-out-freeness)"
    assert answer.stays == {"cmpl-2-0-7f": why}
    assert {sequence: now.instance for sequence, now in answer.now.items()} == {"cmpl-2-0-7f": I0, "cmpl-2-1-7f": I1}


async def test_a_story_is_told_in_the_words_of_the_command(board: Board) -> None:
    answer = msgspec.json.decode((await ask(board, "GET", "/requests/cmpl-1/story")).content, type=StoryAnswer)
    (told,) = answer.stories
    words = answer.words[told.sequence]
    first, *lines = story_lines(told)
    assert first == f"cmpl-1 {words.how_it_is}"
    assert [line.partition(" s  ")[2] for line in lines[1:]] == words.entries
    assert (answer.now, len(words.entries)) == ({}, 8)


async def test_of_thousands_of_sequences_with_one_id_the_latest_are_told_and_how_many_came_before(board: Board) -> None:
    """All prompts of one completion. Their words are made some at a time: in between, tokens are passed on."""
    for number in range(2048):
        story = board.stories.began(50.0, "cmpl-many", f"cmpl-many-{number}", 5)
        if number < 2000:
            story.ended(60.0, "stop", 7)
            board.stories.over(story)
    asked = asyncio.ensure_future(ask(board, "GET", "/requests/cmpl-many/story"))
    turns = 0
    while not asked.done():
        await asyncio.sleep(0)
        turns += 1
    answer = msgspec.json.decode((await asked).content, type=StoryAnswer)
    assert (len(answer.stories), answer.left_out, len(answer.words)) == (64, 2048 - 64, 64)
    assert answer.stories[-1].sequence == "cmpl-many-2047"
    assert turns > 64 / 8


async def test_a_story_is_found_by_the_beginning_of_an_id_unless_several_begin_so(board: Board) -> None:
    for name in ("cmpl-3a7", "cmpl-3a8", "cmpl-3b9"):
        board.stories.began(50.0, name, f"{name}-0-7f", 5)
    found = msgspec.json.decode((await ask(board, "GET", "/requests/cmpl-3b/story")).content, type=StoryAnswer)
    begun = msgspec.json.decode((await ask(board, "GET", "/requests/cmpl-3a8/story")).content, type=StoryAnswer)
    assert [told.request for told in (*found.stories, *begun.stories)] == ["cmpl-3b9", "cmpl-3a8"]
    refused = await ask(board, "GET", "/requests/cmpl-3a/story")
    assert refused.status_code == 400
    assert refused.json()["reason"] == "'cmpl-3a' is the beginning of several ids; write more of it."


async def test_a_journal_with_entries_of_every_kind_is_read_by_kind_by_instance_and_on_from_a_cursor(
    board: Board,
) -> None:
    async def read(query: str) -> JournalAnswer:
        return msgspec.json.decode((await ask(board, "GET", f"/journal?{query}")).content, type=JournalAnswer)

    whole = await read("limit=1000")
    assert {entry.kind for entry in whole.entries} == {*KINDS}
    assert [entry.kind for entry in (await read("kind=moved,stayed")).entries] == ["stayed", "moved"]
    about = await read("instance=i1&limit=1000")
    assert [entry.kind for entry in about.entries] == ["stayed", "moved", "preempted"]
    board.stories.journal.note(11.0, InstanceNoted(serves=False), instance=I1)
    news = await read(f"after={whole.cursor}")
    assert ([entry.kind for entry in news.entries], news.lost) == (["instance"], 0)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/requests/none/story", 404),
        *(("GET", f"/journal?{bad}", 400) for bad in ("limit=0", "limit=1001", "kind=mooved", "after=x", "since=1")),
        ("GET", "/requests/none", 404),
        ("POST", "/instances/i9/drain", 409),
        ("GET", "/migrations?limit=x", 400),
    ],
)
async def test_refusal_is_what_the_table_says(board: Board, method: str, path: str, status: int) -> None:
    answer = await ask(board, method, path)
    assert answer.status_code == status
    refusal = msgspec.json.decode(answer.content, type=RefusalAnswer)
    assert (refusal.ok, refusal.error.code, refusal.error.message) == (False, status, refusal.reason)
    assert msgspec.to_builtins(refusal) == answer.json()


def test_every_route_that_is_served_is_in_the_table_and_the_other_way_round() -> None:
    app = app_of(Board())
    served = {f"{next(iter(route.methods))} {route.path}" for route in _all_routes(app) if PREFIX in route.path}
    named = {f"{route.method} {PREFIX}{route.path}" for route in ROUTES if route.path}
    assert {each.replace("{instance}", "{id}").replace("{request_id:text}", "{id}") for each in served} == named


def _all_routes(app: FastAPI) -> list[Any]:
    routes: list[Any] = []
    rest = list(app.routes)
    while rest:
        one = rest.pop()
        router = getattr(one, "original_router", None)
        rest += [] if router is None else router.routes
        routes += [one] if router is None else []
    assert sorted(each.path for each in routes) == sorted(paths(app.routes))
    return routes


async def test_openapi_document_is_served_under_the_key_as_it_is_stored() -> None:
    answer = await ask(Board(), "GET", "/openapi.json", keys=["sesame"], headers={"Authorization": "Bearer sesame"})
    assert (answer.status_code, answer.content) == (200, OPENAPI.read_bytes())
    assert (await ask(Board(), "GET", "/openapi.json", keys=["sesame"])).status_code == 401
