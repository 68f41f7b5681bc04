"""A model without a KV cache: it is served, balanced, drained and replaced like others, and nothing of it moves."""

from __future__ import annotations

import signal
import string
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

pytest.importorskip("vllm")

import tiny_encoder
from frame.checked import Server
from frame.server import wait_for
from server_garage import own_server

pytestmark = [pytest.mark.timeout(200), pytest.mark.vllm, pytest.mark.nightly]

WORDS = list(string.ascii_lowercase) * 10


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = tiny_encoder.make(tmp_path_factory.mktemp("encoder"))
    flags = ("--enforce-eager", "--gpu-memory-utilization", "0.1", "--max-model-len", "256")
    environment = {"VLLM_SERVER_DEV_MODE": "1"}
    with own_server(tmp_path_factory.mktemp("server"), str(model), *flags, environment=environment) as running:
        yield running


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It compares token by token, for which vLLM by itself keeps the query in the engine that has encoded it."""
    model = tiny_encoder.make(tmp_path_factory.mktemp("scorer"))
    flags = ("--enforce-eager", "--gpu-memory-utilization", "0.1", "--max-model-len", "256")
    by_token = ("--pooler-config", '{"task": "token_embed"}')
    with own_server(tmp_path_factory.mktemp("scores"), str(model), *flags, *by_token) as running:
        yield running


def ask(server: Server, words: int) -> httpx.Response:
    return server.post("/v1/embeddings", json={"input": " ".join(WORDS[:words])})


def embedding(answer: httpx.Response) -> list[float]:
    assert answer.status_code == httpx.codes.OK, answer.text
    numbers: list[float] = answer.json()["data"][0]["embedding"]
    return numbers


def test_both_instances_answer_and_alike(server: Server) -> None:
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda n: embedding(ask(server, 1 + n % 8)), range(64)))
    for n, answer in enumerate(answers):
        assert answer == pytest.approx(answers[n % 8], abs=1e-3)
    dispatches = [line for line in server.metrics().splitlines() if line.startswith("llumnix_dispatches_total")]
    assert len([line for line in dispatches if float(line.split()[-1]) > 0]) == 2, dispatches
    server.wait_until_quiet()
    assert server.migrations() == []


def test_aborted_requests_end_with_an_error_that_says_why_and_later_ones_are_answered(server: Server) -> None:
    assert server.post("/pause", params={"mode": "keep"}).is_success
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(ask, server, 3) for _ in range(8)]
        wait_for(lambda: sum(row["waiting"] for row in server.instances()) == 8, "all of them in a queue")
        assert server.post("/pause", params={"mode": "abort"}).is_success
        answers = [each.result() for each in asked]
    assert {answer.status_code for answer in answers} == {httpx.codes.INTERNAL_SERVER_ERROR}
    assert "The request was given up: its engine aborted it." in answers[0].json()["error"]["message"]
    assert server.post("/resume").is_success
    embedding(ask(server, 3))


def test_drained_instance_goes_and_the_other_answers(server: Server) -> None:
    before = {row["id"] for row in server.instances()}
    drained = sorted(before)[0]
    assert server.post("/llumnix/v1/instances", json={"count": 1}).is_success
    newcomer = wait_for(lambda: {row["id"] for row in server.instances()} - before, "a further instance", 60.0)
    assert server.post(f"/llumnix/v1/instances/{drained}/drain").is_success
    wait_for(lambda: drained not in {row["id"] for row in server.instances("running", "draining")}, "its end", 30.0)
    embedding(ask(server, 3))
    assert {row["id"] for row in server.instances()} == (before | newcomer) - {drained}


def test_killed_instance_costs_no_answer(server: Server) -> None:
    victim = server.instances()[0]["id"]
    with ThreadPoolExecutor(16) as threads:
        answers = [threads.submit(ask, server, 1 + n % 200) for n in range(200)]
        server.signal_instance(victim, signal.SIGKILL)
        assert {answer.result().status_code for answer in answers} == {httpx.codes.OK}
    wait_for(lambda: len(server.instances()) == 2, "another in its place", 60.0)
    embedding(ask(server, 3))


def test_documents_are_compared_with_a_query_whichever_instance_has_which(scorer: Server) -> None:
    documents = [" ".join(WORDS[first : first + 5]) for first in range(12)]
    asked = {"query": "c d e", "documents": documents}
    before = {row["id"] for row in scorer.instances()}
    answers = [scorer.post("/rerank", json=asked) for _ in range(8)]
    assert {answer.status_code for answer in answers} == {httpx.codes.OK}, answers[0].text
    first, *others = [answer.json()["results"] for answer in answers]
    assert len(first) == len(documents)
    for other in others:
        assert [row["relevance_score"] for row in other] == pytest.approx([row["relevance_score"] for row in first])
    assert {row["id"] for row in scorer.instances()} == before
