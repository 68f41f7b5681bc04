"""The admin routes without a server behind them: what they refuse, and how they put it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

pytest.importorskip("vllm")

from admin_board import Board, ask
from fastapi import FastAPI
from request_rows import row

from llumnix.client import MOVE_TIMEOUT_S
from llumnix.control.class_counts import ClassRow
from llumnix.control.scaling import ScalingMode, ScalingStep
from llumnix.control.scheduler_events import DrainOutcome, DrainReport
from llumnix.engine.vllm.front_end import index
from llumnix.engine.vllm.front_end.admin.routes import MIGRATE_TIMEOUT_S
from llumnix.report.records import MigrationRecord
from llumnix.types import InstanceId, Role
from llumnix.wire.news import InstanceStarting
from llumnix.wire.to_front_end import Answer, DrainReports, MigrateAnswer, RequestRow, ScalingStatus
from llumnix.wire.to_scheduler import AddInstances, DrainInstance, GiveRole, UndrainInstance


def record(request: str) -> MigrationRecord:
    return MigrationRecord(
        at_s=1.0,
        request_id=request,
        source=InstanceId("i0"),
        target=InstanceId("i1"),
        reason="by hand",
        outcome="moved",
        stages=2,
        bytes=10,
        copy_ms=1.0,
        handover_ms=3.0,
        downtime_ms=5.0,
    )


@pytest.fixture
def board() -> Board:
    return Board()


def order(target: str = "i1") -> dict[str, Any]:
    return {"json": {"request_id": "cmpl-1", "target": target}}


async def test_all_sequences_of_a_request_move(board: Board) -> None:
    board.rows = [(InstanceId("i0"), row("r0", "0_cmpl-1-0")), (InstanceId("i0"), row("r1", "1_cmpl-1-0"))]
    board.answers = {request: MigrateAnswer(query=1, status=200, record=record("cmpl-1")) for request in ("r0", "r1")}
    answer = await ask(board, "POST", "/migrations", **order())
    assert answer.status_code == 200
    body = answer.json()
    assert (body["ok"], body["source"], body["target"]) == (True, "i0", "i1")
    assert (body["bytes"], body["stages"], body["downtime_ms"]) == (20, 2, 5.0)


async def test_sequence_that_is_there_already_is_not_asked_again(board: Board) -> None:
    board.rows = [(InstanceId("i1"), row("r0", "0_cmpl-1-0")), (InstanceId("i0"), row("r1", "1_cmpl-1-0"))]
    board.answers = {"r1": MigrateAnswer(query=1, status=200, record=record("cmpl-1"))}
    assert (await ask(board, "POST", "/migrations", **order())).status_code == 200


async def test_sequence_that_ended_meanwhile_does_not_matter(board: Board) -> None:
    board.rows = [(InstanceId("i0"), row("r0", "0_cmpl-1-0")), (InstanceId("i0"), row("r1", "1_cmpl-1-0"))]
    board.answers = {
        "r0": MigrateAnswer(query=1, status=404, why="the request has ended"),
        "r1": MigrateAnswer(query=1, status=200, record=record("cmpl-1")),
    }
    assert (await ask(board, "POST", "/migrations", **order())).status_code == 200
    board.answers["r1"] = board.answers["r0"]
    assert (await ask(board, "POST", "/migrations", **order())).status_code == 404


async def test_refusal_says_how_far_it_came(board: Board) -> None:
    board.rows = [(InstanceId("i0"), row("r0", "0_cmpl-1-0")), (InstanceId("i0"), row("r1", "1_cmpl-1-0"))]
    board.answers = {
        "r0": MigrateAnswer(query=1, status=200, record=record("cmpl-1")),
        "r1": MigrateAnswer(query=1, status=409, why="refused: no room"),
    }
    answer = await ask(board, "POST", "/migrations", **order())
    assert answer.status_code == 409
    assert answer.json()["reason"] == "1 of 2 sequences moved, then: refused: no room."


@pytest.mark.parametrize(
    ("target", "status", "words"),
    [
        ("i0", 409, "on i0 already"),
        ("i2", 409, "draining"),
        ("i8", 409, "still starting"),
        ("i6", 409, "still starting"),
        ("i9", 409, "lost: killed by SIGKILL"),
        ("i7", 404, "no instance 'i7'"),
    ],
)
async def test_targets_that_take_nothing(board: Board, target: str, status: int, words: str) -> None:
    board.rows = [(InstanceId("i0"), row("r0", "cmpl-1-0"))]
    answer = await ask(board, "POST", "/migrations", **order(target))
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


async def test_target_may_be_given_as_a_number(board: Board) -> None:
    board.rows = [(InstanceId("i0"), row("r0", "cmpl-1-0"))]
    answer = await ask(board, "POST", "/migrations", json={"request_id": "cmpl-1", "target": 7})
    assert answer.json()["reason"] == "There is no instance '7'."


@pytest.mark.parametrize("named", [{}, {"target": None}])
async def test_request_without_a_target_goes_where_its_front_end_sends_it(board: Board, named: dict[str, None]) -> None:
    board.rows = [(InstanceId("i0"), row("r0", "cmpl-1-0"))]
    board.answers = {"r0": MigrateAnswer(query=1, status=200, record=record("cmpl-1"))}
    answer = await ask(board, "POST", "/migrations", json={"request_id": "cmpl-1", **named})
    assert (answer.status_code, answer.json()["target"], board.targets) == (200, "i1", [None])


async def test_scheduler_that_does_not_answer_is_503(board: Board) -> None:
    board.scheduler_answer = None
    answer = await ask(board, "POST", "/instances", json={"count": 1})
    assert answer.status_code == 503
    assert "restarted" in answer.json()["reason"]


async def test_one_instance_is_started_in_the_role_of_one_that_is_there(board: Board) -> None:
    assert (await ask(board, "POST", "/instances", json={"count": 1, "replaces": "i0"})).status_code == 202
    order = board.asked[-1]
    assert isinstance(order, AddInstances)
    assert order.replaces == "i0"
    for gone_or_unknown, status in (("i9", 409), ("i7", 404)):
        answer = await ask(board, "POST", "/instances", json={"count": 1, "replaces": gone_or_unknown})
        assert answer.status_code == status
    answer = await ask(board, "POST", "/instances", json={"count": 2, "replaces": "i0"})
    assert (answer.status_code, answer.json()["reason"]) == (400, "One instance replaces another, not 2.")


async def test_refusal_of_the_scheduler_is_409(board: Board) -> None:
    board.scheduler_answer = Answer(query=1, ok=False, why="i0 is still starting")
    answer = await ask(board, "POST", "/instances/i0/drain")
    assert (answer.status_code, answer.json()["reason"]) == (409, "i0 is still starting.")


async def test_drain_passes_on_whether_to_keep(board: Board) -> None:
    for keep in ("true", "false"):
        assert (await ask(board, "POST", "/instances/i0/drain", params={"keep": keep})).status_code == 202
    asked = [message for message in board.asked if isinstance(message, DrainInstance)]
    assert [message.keep for message in asked] == [True, False]


async def test_last_instance_is_spared_unless_it_is_forced(board: Board) -> None:
    for force in ("true", "false"):
        assert (await ask(board, "POST", "/instances/i0/drain", params={"force": force})).status_code == 202
    asked = [message for message in board.asked if isinstance(message, DrainInstance)]
    assert [message.spare_last for message in asked] == [False, True]


async def test_undrain_is_the_schedulers_to_allow(board: Board) -> None:
    assert (await ask(board, "POST", "/instances/i2/undrain")).status_code == 202
    (asked,) = board.asked
    assert isinstance(asked, UndrainInstance)
    assert (asked.instance, asked.reply_to) == ("i2", board.address)
    board.scheduler_answer = Answer(query=1, ok=False, why="i2 cannot come back: it is being stopped already")
    answer = await ask(board, "POST", "/instances/i2/undrain")
    assert (answer.status_code, "being stopped" in answer.json()["reason"]) == (409, True)


@pytest.mark.parametrize(("instance", "status"), [("i8", 409), ("i6", 409), ("i9", 409), ("i7", 404)])
async def test_undrain_of_what_is_not_there(board: Board, instance: str, status: int) -> None:
    assert (await ask(board, "POST", f"/instances/{instance}/undrain")).status_code == status
    assert board.asked == []


async def test_role_is_passed_on_to_the_scheduler(board: Board) -> None:
    answer = await ask(board, "POST", "/instances/i2/role", json={"role": "decode"})
    assert (answer.status_code, answer.json()) == (200, {"ok": True, "id": "i2", "role": "decode"})
    (asked,) = board.asked
    assert isinstance(asked, GiveRole)
    assert (asked.instance, asked.role, asked.reply_to) == ("i2", Role.DECODE, board.address)


@pytest.mark.parametrize(
    ("instance", "body", "status"),
    [
        ("i0", {"role": "both"}, 400),
        ("i0", {"role": 1}, 400),
        ("i0", {}, 400),
        ("i8", {"role": "mixed"}, 409),
        ("i7", {"role": "mixed"}, 404),
    ],
)
async def test_what_is_no_role_or_of_no_instance_is_refused(
    board: Board, instance: str, body: dict[str, Any], status: int
) -> None:
    assert (await ask(board, "POST", f"/instances/{instance}/role", json=body)).status_code == status
    assert board.asked == []


async def test_one_request_is_found_by_the_id_that_its_client_has(board: Board) -> None:
    board.rows = [(InstanceId("i0"), row("r0", "cmpl-1-0")), (InstanceId("i1"), row("r1", "cmpl-2-0"))]
    answer = await ask(board, "GET", "/requests/cmpl-2")
    assert [(one["id"], one["instance"]) for one in answer.json()["requests"]] == [("cmpl-2", "i1")]
    assert (await ask(board, "GET", "/requests/cmpl-3")).status_code == 404


async def test_instance_that_is_brought_to_where_the_others_are_is_listed_as_one_that_starts(board: Board) -> None:
    """It reports, and takes no requests yet, which may last: what it is to load may be missing."""
    board.client.members.by_id.clear()
    board.strangers.starting.clear()
    rows = (await ask(board, "GET", "/instances")).json()["instances"]
    assert [(row["id"], row["state"], row["pid"]) for row in rows[:1]] == [("i6", "starting", 7)]


@pytest.mark.parametrize("name", ["cmpl-team/a b", "cmpl-a\nb\n", "cmpl-\u2028"])
async def test_id_that_its_client_chose_may_have_slashes_and_lines(board: Board, name: str) -> None:
    board.rows = [(InstanceId("i0"), row("r0", f"{name}-0"))]
    answer = await ask(board, "GET", f"/requests/{quote(name, safe='')}")
    assert [one["id"] for one in answer.json()["requests"]] == [name]
    board.stories.began(0.0, name, f"{name}-0-7f", 3)
    told = await ask(board, "GET", f"/requests/{quote(name, safe='')}/story")
    assert [story["request"] for story in told.json()["stories"]] == [name]


async def test_half_a_character_is_refused(board: Board) -> None:
    body = rb'{"request_id": "cmpl-\ud800", "target": "i1"}'
    answer = await ask(board, "POST", "/migrations", content=body)
    assert answer.status_code == 400
    assert "half a character" in answer.json()["reason"]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/instances/i0/drain?forse=true"), ("GET", "/migrations?limt=2")]
)
async def test_misspelt_parameter_is_not_ignored(board: Board, method: str, path: str) -> None:
    answer = await ask(board, method, path)
    assert (answer.status_code, board.asked) == (400, [])
    assert answer.json()["reason"].startswith("Unknown parameter '")


async def test_move_that_nobody_answers_is_no_conflict(board: Board) -> None:
    board.rows = [(InstanceId("i0"), row("r0", "cmpl-1-0"))]
    board.answers = {"r0": MigrateAnswer(query=1, status=504, why="no answer from i0 within 60 s")}
    answer = await ask(board, "POST", "/migrations", **order())
    assert (answer.status_code, answer.json()["error"]["type"]) == (504, "timeout_error")


async def test_sequences_of_a_request_share_the_time_of_one_move(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.rows = [(InstanceId("i0"), row(f"r{number}", f"{number}_cmpl-1-0")) for number in range(3)]
    clock, given = iter([0.0, 0.0, 50.0, 120.0]), []

    async def migrate(row: RequestRow, target: InstanceId, timeout_s: float) -> MigrateAnswer:
        given.append(timeout_s)
        return MigrateAnswer(query=1, status=200, record=record("cmpl-1"))

    monkeypatch.setattr(board, "migrate", migrate)
    monkeypatch.setattr("llumnix.engine.vllm.front_end.admin.routes.monotonic", lambda: next(clock))
    assert (await ask(board, "POST", "/migrations", **order())).status_code == 200
    assert given == [90.0, 40.0, 0.0]


def test_clients_wait_longer_than_the_server_lets_a_move_take() -> None:
    assert MOVE_TIMEOUT_S > MIGRATE_TIMEOUT_S + 10


async def test_drain_passes_its_deadline_on(board: Board) -> None:
    for params in ({}, {"timeout_s": "2.5"}):
        assert (await ask(board, "POST", "/instances/i0/drain", params=params)).status_code == 202
    asked = [message for message in board.asked if isinstance(message, DrainInstance)]
    assert [message.timeout_s for message in asked] == [None, 2.5]


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", ""])
async def test_deadline_that_is_none_is_refused(board: Board, text: str) -> None:
    answer = await ask(board, "POST", "/instances/i0/drain", params={"timeout_s": text})
    assert (answer.status_code, board.asked) == (400, [])
    assert "must be a number of seconds" in answer.json()["reason"]


async def test_drains_are_the_schedulers_to_tell(board: Board) -> None:
    report = DrainReport(
        instance=InstanceId("i0"),
        keep=False,
        why="asked for",
        outcome=DrainOutcome.EMPTY,
        requests=5,
        moved=3,
        replayed=1,
        finished=1,
        left=0,
        seconds=1.5,
    )
    board.scheduler_answer = DrainReports(query=1, reports=(report,))  # type: ignore[assignment]
    answer = await ask(board, "GET", "/drains")
    (row,) = answer.json()["drains"]
    assert (row["instance"], row["outcome"], row["moved"], row["seconds"]) == ("i0", "empty", 3, 1.5)
    board.scheduler_answer = None
    assert (await ask(board, "GET", "/drains")).status_code == 503


async def test_scaling_tells_the_time_weighted_number_of_instances(board: Board) -> None:
    assert (await ask(board, "GET", "/scaling")).status_code == 503
    board.scaling = ScalingStatus(
        mode=ScalingMode.ADVISE,
        min_instances=1,
        max_instances=4,
        serving=2,
        draining=0,
        starting=1,
        failing=0,
        now="freeness 5, 3 instances",
        last=ScalingStep(at=9.0, reason="freeness 3 below 10 for 5 s", start=1, carried_out=False),
        starts=1,
        drains=0,
        instance_seconds=50.0,
        watched_s=20.0,
    )
    status = (await ask(board, "GET", "/scaling")).json()
    assert (status["mode"], status["mean_instances"], status["last"]["start"]) == ("advise", 2.5, 1)


async def test_key_of_the_environment_counts(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "from-outside")
    assert (await ask(board, "GET", "/requests")).status_code == 401
    right = {"Authorization": "Bearer from-outside"}
    assert (await ask(board, "GET", "/requests", headers=right)).status_code == 200


async def test_key_of_the_command_line_counts_before_that_of_the_environment(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "from-outside")
    for key, status in (("from-outside", 401), ("flag", 200)):
        headers = {"Authorization": f"Bearer {key}"}
        assert (await ask(board, "GET", "/requests", keys=["flag"], headers=headers)).status_code == status


@pytest.mark.parametrize(("openai", "admin"), [(True, True), (True, False), (False, True)])
async def test_addresses_that_people_try_first_list_what_this_port_serves(openai: bool, admin: bool) -> None:
    app = FastAPI()
    index.add_routes(app, openai=openai, admin=admin, page=False)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        routes = (await client.get("/")).json()["routes"]
        assert ("POST /v1/chat/completions" in routes, "GET /llumnix/v1/instances" in routes) == (openai, admin)
        for path in ("/llumnix", "/llumnix/", "/llumnix/v1", "/llumnix/v1/"):
            assert (await client.get(path)).status_code == (200 if admin else 404)


async def test_instances_are_listed_as_people_count(board: Board) -> None:
    board.client.members.by_id = board.client.members.courted = {}
    names = ("i10", "i2", "i1")
    board.strangers.starting = {name: InstanceStarting(instance=InstanceId(name), pid=1, node="here") for name in names}
    rows = (await ask(board, "GET", "/instances")).json()["instances"]
    assert [row["id"] for row in rows] == ["i1", "i2", "i10", "i9"], "and last those that are gone"


async def test_classes_file_that_was_read_again_holds_for_all_front_ends(board: Board, tmp_path: Path) -> None:
    file = tmp_path / "classes.yaml"
    file.write_text("classes: {a: {}}\nothers: {classes: [a]}\n")
    board.have_classes(file)
    assert (await ask(board, "POST", "/classes/reload")).status_code == 200
    (written,) = board.in_force.write.call_args.args
    assert set(written.classes) == {"a"}
    board.client.change_classes.assert_called_once()
    assert board.parts == ["classes"]


async def test_classes_file_that_is_wrong_changes_nothing(board: Board, tmp_path: Path) -> None:
    file = tmp_path / "classes.yaml"
    file.write_text("classes: {a: {}}\nothers: {classes: [b]}\n")
    board.have_classes(file)
    refused = await ask(board, "POST", "/classes/reload")
    assert refused.status_code == 400
    assert refused.json()["reason"].startswith(f"{file}:2: ")
    assert not board.in_force.write.called
    assert not board.client.change_classes.called


async def test_server_without_classes_has_none_to_show_and_no_file_to_read_again(board: Board) -> None:
    for method, path in (("GET", "/classes"), ("POST", "/classes/reload")):
        answer = await ask(board, method, path)
        assert (answer.status_code, answer.json()["reason"]) == (404, "The server was started without --classes.")


async def test_classes_are_shown_with_their_tenants(board: Board) -> None:
    board.have_classes(Path("classes.yaml"))
    board.class_rows = [ClassRow(cls="fast", tenant="alice", held=2, refused={"429": 1})]
    (row,) = (await ask(board, "GET", "/classes")).json()["classes"]
    assert (row["class"], row["tenant"], row["held"], row["refused"]) == ("fast", "alice", 2, {"429": 1})


async def test_recording_is_begun_and_ended_at_all_front_ends(board: Board) -> None:
    board.have_recorder(Path("/runs/first"))
    begun = await ask(board, "POST", "/record", json={"on": True})
    ended = await ask(board, "POST", "/record", json={"on": False})
    assert begun.json() == {"ok": True, "on": True, "folder": "/runs/first"}
    assert ended.json() == {"ok": True, "on": False, "folder": None}
    assert board.parts == ["record", "record"]
    assert (await ask(board, "POST", "/record", json={"on": "yes"})).status_code == 400


async def test_server_without_a_folder_for_recorded_runs_records_none(board: Board) -> None:
    refused = await ask(board, "POST", "/record", json={"on": True})
    assert refused.status_code == 404
    assert "--record" in refused.json()["reason"]
