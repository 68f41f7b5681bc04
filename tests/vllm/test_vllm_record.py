"""A server of two front ends that records itself: what clients got is written, and nothing of what they said."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from frame.checked import USUAL_FLAGS, Server
from frame.server import wait_for
from server_garage import own_server

from llumnix.record.read import RecordedRun, read_run

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(240)]

COMMON, OWN = 1024, 16  # tokens of a prompt that some have in common, and that nobody else has
SECRET = "no-recording-tells-this"
REQUESTS = 40


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Some requests at a time, one that moves and one that fails; it is asked what if, switched off, and on again. The
    folder, and what the server answered to that."""
    made = tmp_path_factory.mktemp("recorded")
    flags = ("--api-server-count", "2", "--record", str(made / "runs"))
    with own_server(made, *USUAL_FLAGS, *flags) as server:
        with ThreadPoolExecutor(6) as pool:
            said = list(pool.map(lambda number: ask(server, number), range(REQUESTS)))
            moving = pool.submit(ask, server, REQUESTS, 400)
            move_one(server)
            said.append(moving.result())
        assert sum(said) == sum(tokens_of(number) for number in range(REQUESTS)) + 400
        time.sleep(1.2)  # one more look at the instances
        asked = what_if(server)
        answer = server.post("/llumnix/v1/record", json={"on": False})
        assert answer.json() == {"ok": True, "on": False, "folder": None}
        (first,) = (made / "runs").iterdir()
        ask(server, 1)
        again = Path(server.post("/llumnix/v1/record", json={"on": True}).json()["folder"])
        ask(server, 2)
        server.wait_until_quiet()
    assert (again.parent, again == first) == (made / "runs", False)
    assert [request.output_tokens for request in read_run(again).requests] == [tokens_of(2)]
    return first, asked


@pytest.fixture(scope="module")
def folder(recorded: tuple[Path, dict[str, Any]]) -> Path:
    return recorded[0]


@pytest.fixture(scope="module")
def run(folder: Path) -> RecordedRun:
    return read_run(folder)


def tokens_of(number: int) -> int:
    return 8 + number % 50


def ask(server: Server, number: int, tokens: int | None = None) -> int:
    """Every second prompt begins with what they have in common. How many tokens came."""
    prompt = [7] * COMMON * (number % 2) + [number % 250] * OWN
    body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens or tokens_of(number), "ignore_eos": True}
    headers = {"X-Request-Id": f"{SECRET}-{number}", "Authorization": f"Bearer {SECRET}"}
    answer = httpx.post(f"{server.url}/v1/completions", json=body | {"user": SECRET}, headers=headers, timeout=60)
    return int(answer.raise_for_status().json()["usage"]["completion_tokens"])


def move_one(server: Server) -> None:
    row = wait_for(lambda: next((row for row in server.requests() if row["output_tokens"] > 3), None), "a stream")
    target = {"i0": "i1", "i1": "i0"}[row["instance"]]
    answer = server.post("/llumnix/v1/migrations", json={"request_id": row["id"], "target": target})
    assert answer.status_code == 200, answer.text


def what_if(server: Server) -> dict[str, Any]:
    """Asked of one front end, and heard of at whichever comes."""
    answer = server.post("/llumnix/v1/whatif", json={"tries": ["instances=1"]})
    assert answer.status_code == 202, answer.text

    def ended() -> dict[str, Any] | None:
        said = server.get("/llumnix/v1/whatif").json()
        return None if said["running"] else dict(said["run"])

    return wait_for(ended, "the end of the simulations")


def test_server_that_is_asked_what_would_have_been_looks_at_its_own_run(
    recorded: tuple[Path, dict[str, Any]],
) -> None:
    """And says what is missing: this one is short, and of what came after its last look nothing can be said."""
    folder, asked = recorded
    assert asked["folder"] == str(folder)
    assert (asked["total"], asked["done"], asked["found"]) == (16, 0, None)
    count = re.fullmatch(rf"{folder} has (\d+) requests that made tokens .* 50 are the fewest .*", asked["problem"])
    assert count is not None
    assert 0 < int(count[1]) <= REQUESTS + 1


def test_each_request_is_written_once_whichever_front_end_it_went_through(run: RecordedRun) -> None:
    lengths = sorted(request.output_tokens for request in run.requests)
    assert lengths == sorted([*(tokens_of(number) for number in range(REQUESTS)), 400])
    assert sorted({request.prompt_tokens for request in run.requests}) == [OWN, COMMON + OWN]
    assert len({request.id for request in run.requests}) == REQUESTS + 1
    assert run.about.front_ends == 2
    assert run.about.dropped == 0
    for request in run.requests:
        assert request.queue_s is not None
        assert request.ttft_s is not None
        assert request.latency_s is not None
        assert 0 <= request.queue_s < request.ttft_s < request.latency_s < 60
        assert request.largest_gap_s is not None
        assert request.tpot_s is not None
        assert request.tpot_s <= request.largest_gap_s
        assert 0 <= request.arrival_s < run.end_s
    firsts = [request.block_hashes[0] for request in run.requests if request.block_hashes]
    assert len(firsts) == sum(number % 2 for number in range(REQUESTS + 1))
    assert len(set(firsts)) == 1, "the front ends see that these begin alike"
    assert any(request.cached_tokens for request in run.requests)


def test_the_move_is_there_under_the_same_name(run: RecordedRun) -> None:
    (move,) = run.moves
    (moved,) = (request for request in run.requests if request.migrations)
    assert (move.request_id, move.outcome) == (moved.id, "moved")
    assert moved.instances == (move.source, move.target)
    assert moved.prompt_tokens < move.tokens < moved.prompt_tokens + 400
    assert move.bytes > 0


def test_nothing_that_clients_said_is_in_any_file(folder: Path) -> None:
    for file in folder.iterdir():
        content = file.read_text()
        assert SECRET not in content
        for prompt in (", ".join("7" * 8), ",".join("7" * 8)):
            assert prompt not in content


def test_instances_tell_what_their_steps_cost(run: RecordedRun) -> None:
    assert {row.instance for row in run.instances} == {"i0", "i1"}
    assert all(0 < step.decode_step_ms < 1000 for step in run.steps)
    assert any(step.prefill_token_us > 0 for step in run.steps)
