"""The admin client and its commands against a server that answers from a script."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from admin_answers import Install, drain_report, moved_answer, scaling_row, started_answer, state_answer, status_answer
from admin_answers import instance_row as row
from llumnix.cli import main
from llumnix.client import AdminClient
from llumnix.errors import ServerRefused, UsageError
from llumnix.operations import restart_rolling, start


def test_status_is_a_table(
    answer_with: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    facts: dict[str, Any] = {
        "pid": 17,
        "total_blocks": 100,
        "free_blocks": 60,
        "running": 2,
        "waiting": 1,
        "freeness": 20.04,
        "load": "roomy",
    }
    starting = row("i1", "starting")
    status = status_answer(row("i0", **facts), starting)
    answer_with(lambda request: httpx.Response(200, json=status))
    assert main(["status"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split()[:7] == ["i0", "running", "17", "2", "1", "60/100", "20.0"]
    assert out[1].split()[7] == "roomy"
    assert out[2].split()[:7] == ["i1", "starting", "–", "0", "0", "–", "–"]
    assert out[3] == "freeness: free blocks per request, over < 0 ≤ tight < 3 < roomy; in, out: moves"
    assert out[4] == "scheduler: running (pid 5)"


def test_status_as_json_is_the_answer(answer_with: Install, capsys: pytest.CaptureFixture[str]) -> None:
    status = status_answer(row("i0"), row("i1", "lost", why="killed by SIGKILL"), scaling=scaling_row())
    answer_with(lambda request: httpx.Response(200, json=status))
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == status


def test_key_is_sent(answer_with: Install) -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["Authorization"])
        return httpx.Response(200, json={"instances": []})

    answer_with(answer)
    assert main(["status", "--json", "--api-key", "sesame"]) == 0
    assert seen == ["Bearer sesame"]


def test_migrate_tells_how_it_went(answer_with: Install, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content) == {"request_id": "cmpl-1", "target": "i1"}
        return httpx.Response(200, json=moved_answer(handover_ms=3.21, downtime_ms=7.25))

    answer_with(answer)
    assert main(["migrate", "cmpl-1", "i1"]) == 0
    said = "moved cmpl-1 from i0 to i1: downtime 7.2 ms (hand-over 3.2 ms, 2 stages, 4,096 bytes)\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("status", "body", "code", "sentence"),
    [
        (404, {"error": {"message": "There is no request cmpl-1."}}, 2, "There is no request cmpl-1."),
        (409, {"ok": False, "reason": "i1 is draining"}, 1, "i1 is draining"),
        (
            401,
            {"error": "Unauthorized"},
            2,
            "The server wants its API key; give it with --api-key or in LLUMNIX_API_KEY.",
        ),
        (500, "oops", 1, "HTTP status 500"),
        (404, {"detail": "Not Found"}, 1, "is not Llumnix"),
    ],
)
def test_refusals_are_told_in_the_servers_words(
    answer_with: Install,
    capsys: pytest.CaptureFixture[str],
    status: int,
    body: Any,
    code: int,
    sentence: str,
) -> None:
    answer_with(lambda request: httpx.Response(status, json=body))
    assert main(["migrate", "cmpl-1", "i1"]) == code
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "query"),
    [([], ""), (["--keep"], "keep=true"), (["--force"], "force=true"), (["--timeout-s", "2"], "timeout_s=2.0")],
)
def test_drain_names_the_instance(answer_with: Install, flags: list[str], query: str) -> None:
    asked: list[httpx.URL] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        return httpx.Response(202, json=state_answer("i1", "draining"))

    answer_with(answer)
    assert main(["drain", "i1", *flags]) == 0
    assert [(url.path, url.query.decode()) for url in asked] == [("/llumnix/v1/instances/i1/drain", query)]


def report(outcome: str, **facts: Any) -> dict[str, Any]:
    usual = {"instance": "i1", "moved": 3, "replayed": 1, "finished": 2, "seconds": 1.256}
    return drain_report(**{**usual, "outcome": outcome, **facts})


@pytest.mark.parametrize(
    ("ended", "sentence"),
    [
        (report("empty"), "i1 is empty after 1.26 s: 3 moved, 1 replayed, 2 finished"),
        (report("empty", keep=True), "i1 is empty after 1.26 s (it stays, empty): 3 moved, 1 replayed, 2 finished"),
        (report("cut off", left=4), "i1 was cut off after 1.26 s: 3 moved, 1 replayed, 2 finished, 4 failed"),
        (report("lost", left=4), "i1 was lost after 1.26 s: 3 moved, 1 replayed, 2 finished, 4 left to replay"),
    ],
)
def test_drain_that_waits_prints_the_report(
    answer_with: Install, capsys: pytest.CaptureFixture[str], ended: dict[str, Any], sentence: str
) -> None:
    reports = iter([[], [report("draining")], [ended, report("draining", instance="i2")]])

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/llumnix/v1/drains":
            return httpx.Response(200, json={"drains": next(reports)})
        known = state_answer("i1", "draining") | status_answer(row("i1", "draining"))
        return httpx.Response(202, json=known)

    answer_with(answer)
    assert main(["drain", "i1", "--wait"]) == 0
    assert capsys.readouterr().out == sentence + "\n"


def test_drain_of_which_nobody_has_a_report_does_not_wait_for_ever(
    answer_with: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    answer_with(
        lambda request: httpx.Response(
            200, json=state_answer("i1", "draining") | status_answer(row("i1", "stopped"), drains=[])
        )
    )
    assert main(["drain", "i1", "--wait"]) == 1
    assert "has no report of its drain" in capsys.readouterr().err


def test_status_tells_what_auto_scaling_makes_of_it(
    answer_with: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    last_step = {"at": 1.0, "start": 1, "drain": None, "reason": "freeness 4 below 10", "carried_out": False}
    status = status_answer(scaling=scaling_row(mode="advise", now="freeness 9, 2 instances", last=last_step))
    answer_with(lambda request: httpx.Response(200, json=status))
    assert main(["status"]) == 0
    last = "; last: start 1 (freeness 4 below 10)"
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"scaling: advise, 1 to 4 instances; freeness 9, 2 instances{last}"
    )


class Cluster:
    """Starts and drains at once."""

    def __init__(self) -> None:
        self.states = {"i0": "running", "i1": "running"}
        self.story: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"instances": [row(name, state) for name, state in self.states.items()]})
        if request.url.path.endswith("/drain"):
            instance = request.url.path.split("/")[-2]
            self.states[instance] = "stopped"
            self.story.append(f"-{instance}")
            return httpx.Response(202, json=state_answer(instance, "draining"))
        instance, replaces = f"i{len(self.states)}", json.loads(request.content)["replaces"]
        self.states[instance] = "running"
        self.story.append(f"+{instance} for {replaces}")
        return httpx.Response(202, json=started_answer(1))


def test_rolling_restart_never_has_fewer_instances(answer_with: Install) -> None:
    cluster = Cluster()
    answer_with(cluster)
    lines: list[str] = []
    restart_rolling(AdminClient("http://server"), lines.append, timeout_s=5)
    assert cluster.story == ["+i2 for i0", "-i0", "+i3 for i1", "-i1"]
    assert lines == ["i2 runs; emptying i0", "i0 stopped", "i3 runs; emptying i1", "i1 stopped"]


def test_rolling_restart_stops_when_no_instance_comes(answer_with: Install) -> None:
    answer_with(lambda request: httpx.Response(200, json=started_answer(1) | status_answer(row("i0"))))
    with pytest.raises(ServerRefused, match="A new instance did not start within 0 s"):
        restart_rolling(AdminClient("http://server"), lambda line: None, timeout_s=0)


def test_many_instances_are_ordered_in_the_time_that_one_answer_may_take(
    answer_with: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many orders that takes: a server that answers each one late holds nobody up for long."""
    now, ordered = [100.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def late(request: httpx.Request) -> httpx.Response:
        now[0] += 12.0
        ordered.append(json.loads(request.content)["count"])
        return httpx.Response(202, json=started_answer(ordered[-1]))

    answer_with(late)
    AdminClient("http://server").start(130)
    assert ordered == [64, 64, 2]
    with pytest.raises(ServerRefused, match="did not take all orders within 30 s; 192 may start"):
        AdminClient("http://server").start(200)


def test_the_time_to_start_counts_from_the_order(answer_with: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def late(request: httpx.Request) -> httpx.Response:
        now[0] += 6.0
        return httpx.Response(200, json=started_answer(1) | status_answer(row("i0")))

    answer_with(late)
    with pytest.raises(ServerRefused, match="Fewer than 1 new instances run within 15 s"):
        start(AdminClient("http://server"), 1, lambda line: None, wait_s=15.0)
    assert now == [118.0], "asked before, ordered, and looked once"


def test_address_without_a_scheme_is_bad_use() -> None:
    with pytest.raises(UsageError, match="must begin with http"):
        AdminClient("localhost:8000").status()
