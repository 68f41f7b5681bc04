from __future__ import annotations

import argparse
import asyncio
import io
import math
import os
import signal
import socket
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai_server import OpenAIServer, serving
from rich.console import Console

from llumnix.bench.cli import add_arguments, run
from llumnix.bench.client import BenchConfig, BenchResult, bench
from llumnix.bench.completion import _refusal
from llumnix.bench.server import clock_ahead_s
from llumnix.errors import LlumnixError, ServerRefused, UsageError
from llumnix.report.records import RequestRecord, read_records
from llumnix.report.summary import Summary
from llumnix.types import InstanceState
from llumnix.workload.workload import WorkloadRequest, load_workload

WORKLOAD = "uniform:rate=100,prompt=20,output=6,requests=12,seed=1"


async def go(server: OpenAIServer, workload: str = WORKLOAD, **options: Any) -> BenchResult:
    config = BenchConfig(url=server.url, **options)
    return await asyncio.wait_for(bench(load_workload(workload), config, Console(file=io.StringIO())), 30)


def row(result: BenchResult, id: str) -> RequestRecord:
    return next(row for row in result.records.requests if row.id == id)


async def test_every_request_arrives_as_the_workload_says(server: OpenAIServer) -> None:
    result = await go(server, "uniform:rate=100,prompt=uniform5-30,output=6,requests=12,high=0.5,seed=1")
    rows = result.records.requests
    assert [r.id for r in rows] == [f"r{i:06d}" for i in range(12)]
    assert [r.error for r in rows] == [""] * 12
    assert [len(server.bodies[r.id]["prompt"]) for r in rows] == [r.prompt_tokens for r in rows]
    assert {server.bodies[r.id]["model"] for r in rows} == {"tiny"}
    assert [r.priority for r in rows] == [server.bodies[r.id].get("priority", 0) for r in rows]
    assert {r.output_tokens for r in rows} == {6}
    assert [r.arrival_s for r in rows] == pytest.approx([i / 100 for i in range(12)])


async def test_times_are_those_of_the_stream() -> None:
    async with serving(OpenAIServer(step_s=0.05, faults={"r000001": "pause"})) as server:
        result = await go(server, "uniform:rate=5,prompt=4,output=6,requests=2")
    even, paused = result.records.requests
    assert even.ttft_s is not None
    assert even.tpot_s is not None
    assert even.latency_s is not None
    assert paused.largest_gap_s is not None
    assert even.ttft_s >= 0.05
    assert even.latency_s >= 0.30
    assert 0 < even.tpot_s <= (even.latency_s - even.ttft_s) / 5 + 1e-9
    assert paused.latency_s is not None
    assert paused.latency_s >= 0.65, "it slept for 0.4 s before the third token"
    assert 0 < paused.largest_gap_s <= paused.latency_s


async def test_chunks_of_several_tokens_are_counted_exactly() -> None:
    async with serving(OpenAIServer(tokens_per_chunk=4)) as server:
        assert {r.output_tokens for r in (await go(server)).records.requests} == {6}


async def test_server_without_usage_per_chunk_is_fine() -> None:
    async with serving(OpenAIServer(continuous_usage=False)) as server:
        rows = (await go(server)).records.requests
    assert {(r.output_tokens, r.error) for r in rows} == {(6, "")}
    assert all(r.largest_gap_s for r in rows)


@pytest.mark.parametrize(
    ("fault", "error", "tokens"),
    [
        ("refuse", "HTTP 503", 0),
        ("close at once", "connection lost", 0),
        ("close in the middle", "connection lost", 2),
        ("end in the middle", "stream ended early", 2),
        ("error", "error in the stream", 2),
        ("garbage", "malformed answer", 2),
        ("abort", "finished with abort", 2),
        ("hang", "timeout", 2),
        ("one token less", "wrong number of tokens", 5),
        ("in pieces", "", 6),
    ],
)
async def test_failed_request_is_a_row_and_the_others_go_on(
    server: OpenAIServer, fault: str, error: str, tokens: int
) -> None:
    server.faults["r000003"] = fault
    result = await go(server, timeout_s=2.0)
    failed = row(result, "r000003")
    assert (failed.error, failed.output_tokens) == (error, tokens)
    assert (failed.latency_s is None) == bool(error)
    assert [r.error for r in result.records.requests if r.id != "r000003"] == [""] * 11


@pytest.mark.parametrize("fault", ["refuse", "close at once", "close in the middle", "end in the middle", "error"])
async def test_who_asks_again_after_a_failure_has_the_whole_answer(server: OpenAIServer, fault: str) -> None:
    server.faults, server.faulty_tries = {"r000003": fault}, 1
    result = await go(server, tries=2)
    assert {(r.error, r.output_tokens) for r in result.records.requests} == {("", 6)}
    assert result.asked_again == frozenset({"r000003"})
    assert server.tries["r000003"] == 2
    assert result.facts["asked_again"] == 1


async def test_whose_stream_broke_waits_until_there_is_more_than_there_was(server: OpenAIServer) -> None:
    server.faults, server.faulty_tries = {"r000003": "close in the middle"}, 1
    broken = row(await go(server, tries=2), "r000003")
    assert broken.largest_gap_s is not None
    assert broken.latency_s is not None
    assert 0.5 <= broken.largest_gap_s < broken.latency_s
    assert broken.ttft_s is not None
    assert broken.ttft_s < 0.5


async def test_who_was_told_when_to_come_back_comes_then(server: OpenAIServer) -> None:
    server.faults, server.faulty_tries, server.retry_after = {"r000003": "refuse"}, 2, "0.01"
    told = row(await go(server, tries=3), "r000003")
    assert told.error == ""
    assert told.ttft_s is not None
    assert told.ttft_s < 0.5


@pytest.mark.parametrize(("said", "obeyed_s"), [("60", 60.0), ("61", None), ("0", None), ("nan", None), ("soon", None)])
def test_no_client_comes_back_hours_later(said: str, obeyed_s: float | None) -> None:
    assert _refusal(429, {"Retry-After": said}, "").again_s == obeyed_s


@pytest.mark.parametrize(
    ("fault", "error", "asked"),
    [("refuse", "HTTP 503", 2), ("misunderstand", "HTTP 400", 1), ("one token less", "wrong number of tokens", 1)],
)
async def test_only_what_may_pass_is_asked_again_and_so_often_only(
    server: OpenAIServer, fault: str, error: str, asked: int
) -> None:
    server.faults, server.retry_after = {"r000003": fault}, "0.01"
    result = await go(server, tries=2)
    assert (row(result, "r000003").error, server.tries["r000003"]) == (error, asked)


async def test_one_slow_answer_delays_no_arrival(server: OpenAIServer) -> None:
    """The first one ends when the last one has come."""
    server.faults = {"r000000": "wait for others"}
    result = await go(server, timeout_s=20.0)
    assert {r.error for r in result.records.requests} == {""}


async def test_burst_goes_out_at_once() -> None:
    async with serving(OpenAIServer(step_s=0.05)) as server:
        started = time.monotonic()
        result = await go(server, "burst:prompt=4,output=4,requests=300")
        assert time.monotonic() - started < 10
    assert {r.error for r in result.records.requests} == {""}


async def test_time_scale_stretches_arrivals(server: OpenAIServer) -> None:
    result = await go(server, time_scale=3.0)
    assert result.records.requests[-1].arrival_s == pytest.approx(0.33)


async def test_migrations_of_the_run_are_recorded_and_counted(server: OpenAIServer) -> None:
    def migrations() -> dict[str, Any]:
        sent = next(h["x-request-id"] for h in server.headers if h.get("x-request-id", "").endswith("r000002"))
        move = {"request_id": f"cmpl-{sent}", "reason": "balance", "stages": 2, "bytes": 4096, "downtime_ms": 1.5}
        return {
            "migrations": [
                {**move, "at": time.time(), "source": "b", "target": "c", "outcome": "moved"},
                {**move, "at": time.time() - 1e-3, "source": "a", "target": "b", "outcome": "moved"},
                {**move, "at": time.time() - 2e-3, "source": "a", "target": "c", "outcome": "no room", "bytes": 0},
                {**move, "at": time.time() - 1e4, "source": "z", "target": "a", "outcome": "moved"},
            ]
        }

    server.routes["/llumnix/v1/migrations"] = migrations
    result = await go(server)
    assert [(m.source, m.target, m.outcome, m.bytes) for m in result.records.migrations] == [
        ("a", "c", "no room", 0),
        ("a", "b", "moved", 4096),
        ("b", "c", "moved", 4096),
    ]
    assert (row(result, "r000002").migrations, row(result, "r000002").instances) == (2, ("a", "b", "c"))
    assert (row(result, "r000003").migrations, row(result, "r000003").instances) == (0, ())


async def test_server_that_moved_nothing_has_moved_every_request_zero_times(server: OpenAIServer) -> None:
    server.routes["/llumnix/v1/migrations"] = {"migrations": []}
    assert {r.migrations for r in (await go(server)).records.requests} == {0}


async def test_instances_are_sampled_and_one_that_vanishes_counts_as_stopped(server: OpenAIServer) -> None:
    instance = {"state": "running", "total_blocks": 100, "free_blocks": 60, "running": 2, "freeness": 30.0}
    answers = [
        {"instances": [{"id": "a", **instance}, {"id": "b", **instance, "state": "draining", "freeness": None}]},
        {"instances": [{"id": "a", **instance}]},
    ]
    server.routes["/llumnix/v1/instances"] = lambda: answers.pop(0) if len(answers) > 1 else answers[0]
    rows = (await go(server, "uniform:rate=5,prompt=4,output=4,requests=8")).records.instances
    first, second = ([r for r in rows if r.instance == name] for name in ("a", "b"))
    assert [r.at_s for r in first] == pytest.approx([0.0, 1.0], abs=0.4)
    assert first[0].free_blocks == 60
    assert [(r.state, r.freeness) for r in second] == [
        (InstanceState.DRAINING, -math.inf),
        (InstanceState.STOPPED, -math.inf),
    ]


async def test_server_without_our_routes_has_no_such_records(server: OpenAIServer) -> None:
    result = await go(server, "uniform:rate=10,prompt=4,output=4,requests=16")
    assert result.records.instances == []
    assert result.records.migrations == []
    assert result.records.requests[0].migrations is None
    assert sum("instances" in path for path in server.gets) == 1


async def test_what_is_no_text_costs_the_answer_that_it_is_in(server: OpenAIServer) -> None:
    server.routes["/llumnix/v1/instances"] = b'{"instances": [{"id": "\xff"}]}'
    server.faults = {"r000002": "no letters"}
    result = await go(server)
    assert result.records.instances == []
    assert {r.id: r.error for r in result.records.requests if r.error} == {"r000002": "malformed answer"}


@pytest.mark.parametrize("ahead_s", [-7200.0, 7200.0])
async def test_migrations_of_a_server_whose_clock_is_off_are_those_of_the_run(
    server: OpenAIServer, ahead_s: float
) -> None:
    server.date = formatdate(time.time() + ahead_s, usegmt=True)
    move = {"request_id": "cmpl-1", "source": "a", "target": "b", "stages": 1, "bytes": 1}
    server.routes["/llumnix/v1/migrations"] = lambda: {
        "migrations": [
            {**move, "at": time.time() + ahead_s + 5.0, "outcome": "moved"},
            {**move, "at": time.time() + ahead_s - 60.0, "outcome": "before"},
        ]
    }
    (moved,) = (await go(server)).records.migrations
    assert moved.outcome == "moved"
    assert moved.at_s == pytest.approx(5.0, abs=3.0)


@pytest.mark.parametrize(("said_s", "ahead_s"), [(98.0, 0.0), (101.0, 0.0), (106.0, 0.0), (90.0, -10.0), (120.0, 20.0)])
def test_clock_of_a_server_that_answers_late_may_be_that_of_any_moment_until_then(
    said_s: float, ahead_s: float
) -> None:
    """It was asked at 100 s, and its answer came at 104 s."""
    assert clock_ahead_s(formatdate(said_s, usegmt=True), 100.0, 104.0) == ahead_s


async def test_api_key_goes_with_every_request(server: OpenAIServer) -> None:
    await go(server, api_key="secret")
    assert {h.get("authorization") for h in server.headers} == {"Bearer secret"}


async def test_classes_and_tenants_of_the_workload_are_told_to_the_server(server: OpenAIServer) -> None:
    await go(server, f"{WORKLOAD},tenants=alice*3+bob/batch", tenant_header="X-Tenant")
    told = {(h.get("x-tenant"), h.get("x-llumnix-class")) for h in server.headers if "x-request-id" in h}
    assert told == {("alice", None), ("bob", "batch")}


async def test_who_does_not_say_by_which_header_tenants_go_is_told_that_none_is_said(
    server: OpenAIServer,
) -> None:
    out = io.StringIO()
    workload = load_workload(f"{WORKLOAD},tenants=alice+bob/batch")
    await bench(workload, BenchConfig(url=server.url), Console(file=out, width=200))
    assert "--tenant-header" in out.getvalue()
    assert {h.get("x-llumnix-class") for h in server.headers if "x-request-id" in h} == {None, "batch"}


@pytest.mark.parametrize("names", [{"tenant": "a\r\nX-Other: b"}, {"cls": "é"}])
async def test_what_no_header_can_say_is_refused_before_the_first_request(
    server: OpenAIServer, tmp_path: Path, names: dict[str, str]
) -> None:
    row = WorkloadRequest("r", 0.0, 3, 2, **names)  # type: ignore[arg-type]
    (tmp_path / "odd.jsonl").write_bytes(msgspec.json.encode(row) + b"\n")
    with pytest.raises(UsageError, match="no tenant or class that a header can name"):
        await go(server, str(tmp_path / "odd.jsonl"), tenant_header="X-Tenant")
    assert server.tries == {}


async def test_ids_of_a_trace_may_be_anything(server: OpenAIServer, tmp_path: Path) -> None:
    names = ("a\r\nx: y", "é ü", "same", "n" * 100_000)
    lines = [msgspec.json.encode(WorkloadRequest(name, 0.0, 3, 2)) + b"\n" for name in names]
    (tmp_path / "odd.jsonl").write_bytes(b"".join(lines))
    rows = (await go(server, str(tmp_path / "odd.jsonl"))).records.requests
    assert sorted(r.id for r in rows) == sorted(names)
    assert {r.error for r in rows} == {""}


async def test_url_may_end_in_v1(server: OpenAIServer) -> None:
    server.url += "/v1/"
    assert {r.error for r in (await go(server)).records.requests} == {""}


@pytest.mark.parametrize(
    ("models", "says"),
    [
        (401, "wants its API key"),
        (500, "HTTP 500"),
        ({"data": []}, "serves no model"),
        ({"hello": 1}, "is not an OpenAI-compatible server"),
        (b'{"data": [{"id": "\xff"}]}', "is not an OpenAI-compatible server"),
        ({"data": [{"id": "big"}]}, "does not serve tiny; it serves big"),
    ],
)
async def test_server_that_cannot_be_used_is_refused_with_one_sentence(
    server: OpenAIServer, models: Any, says: str
) -> None:
    server.models = models
    with pytest.raises(LlumnixError, match=says) as refusal:
        await go(server, model="tiny")
    assert isinstance(refusal.value, UsageError) == (models == 401 or "does not serve" in says)


async def test_nothing_listening_is_refused_with_one_sentence() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ServerRefused, match="No server answers at"):
            await go(OpenAIServer(url=f"http://127.0.0.1:{unused.getsockname()[1]}"))


async def test_too_long_requests_are_warned_of(server: OpenAIServer) -> None:
    out = io.StringIO()
    config = BenchConfig(url=server.url)
    await bench(load_workload("burst:prompt=4095,output=2,requests=3"), config, Console(file=out, width=200))
    assert "3 of 3 requests are longer than the model's 4,096 tokens" in out.getvalue()


async def test_ctrl_c_ends_the_run_with_what_there_is(server: OpenAIServer) -> None:
    server.faults, server.others = {f"r{i:06d}": "hang" for i in range(1, 50)}, 5

    async def press_ctrl_c() -> None:
        await server.others_came.wait()
        os.kill(os.getpid(), signal.SIGINT)

    pressed = asyncio.create_task(press_ctrl_c())
    result = await go(server, "uniform:rate=10,prompt=4,output=4,requests=1000")
    await pressed
    assert result.interrupted
    assert result.records.requests[0].error == ""
    assert {r.error for r in result.records.requests[1:]} == {"interrupted"}
    assert len(result.records.requests) < 50


# The command


def command(server: OpenAIServer, out: Path, *more: str) -> int:
    """Runs `llumnix bench` in this thread and `server` in another."""
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        async with serving(server):
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait(10)
    try:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        return run(parser.parse_args(["--url", server.url, "--workload", WORKLOAD, "--out", str(out), *more]))
    finally:
        done.set()
        thread.join(10)


def test_command_writes_records_summary_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(OpenAIServer(), tmp_path / "run", "--requests", "5") == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "instances.csv", "latency.png", "migrations.csv", "requests.csv", "summary.json",
    ]  # fmt: skip
    assert len(read_records(tmp_path / "run").requests) == 5
    summary = msgspec.json.decode((tmp_path / "run" / "summary.json").read_bytes(), type=Summary)
    assert (summary.requests.requests, summary.run["model"], summary.run["seed"]) == (5, "tiny", 1)
    assert "5 of 5 requests finished" in capsys.readouterr().out


def test_rows_without_a_token_of_an_earlier_run_are_not_asked_for_again_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "id,arrival_s,prompt_tokens,output_tokens\na,0,3,2\nleft,0,3,0\nb,0,3,2\n"
    (tmp_path / "requests.csv").write_text(rows)
    workload = ["--workload", str(tmp_path / "requests.csv"), "--no-figures"]
    assert command(OpenAIServer(), tmp_path / "run", *workload) == 0
    assert [row.id for row in read_records(tmp_path / "run").requests] == ["a", "b"]
    assert "1 row is left out of the workload" in capsys.readouterr().err


def test_without_matplotlib_only_the_picture_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llumnix.bench.cli.can_draw", lambda: False)
    assert command(OpenAIServer(), tmp_path) == 0
    assert not (tmp_path / "latency.png").exists()
    assert (tmp_path / "summary.json").exists()
    assert "Pictures need matplotlib" in " ".join(capsys.readouterr().err.split())


def test_failed_requests_are_told_and_fail_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faults = {"r000001": "refuse"}
    assert command(OpenAIServer(faults=faults), tmp_path, "--no-figures") == 1
    printed = capsys.readouterr()
    assert "1 requests failed: 1 × HTTP 503" in printed.out
    assert 'HTTP 503, for example: {"why": "busy"}' in printed.err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--url", "localhost:8000"], "--url localhost:8000 is not an address"),
        (["--time-scale", "0"], "--time-scale must be above 0"),
        (["--timeout-s", "-1"], "--timeout-s must be above 0"),
        (["--tries", "0"], "--tries must be at least 1"),
        (["--vocab", "0"], "--vocab must be at least 1"),
        (["--tenant-header", "X Tenant"], "--tenant-header X Tenant is no name of a header"),
        (["--workload", "nonsense"], "nonsense is not a workload"),
        (["--out", "/proc/none"], "Cannot write to --out"),
    ],
)
def test_bad_flags_are_refused_with_one_sentence(tmp_path: Path, flags: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        command(OpenAIServer(), tmp_path, *flags)
