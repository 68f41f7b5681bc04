"""A server with `--classes`: who is refused and how, who waits, and what is told of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from frame.checked import USUAL_FLAGS, Server
from frame.server import wait_for

INSTANCES = 1
FLAGS = (*USUAL_FLAGS, "--classes", str(Path(__file__).with_name("classes.yaml")))

LONG = "word " * 40


def ask(server: Server, tenant: str, path: str = "/v1/completions", cls: str = "", **body: Any) -> httpx.Response:
    headers = {"X-Tenant": tenant, "X-Llumnix-Class": cls}
    said = {"messages": [{"role": "user", "content": "Hello"}]} if "chat" in path else {"prompt": "Hello"}
    usual = {"model": "tiny", "max_tokens": 3, "ignore_eos": True, **said}
    return httpx.post(f"{server.url}{path}", json=usual | body, headers=headers, timeout=60)


def assert_refused(answer: httpx.Response, status: int, words: str) -> None:
    error = answer.json()["error"]
    assert answer.status_code == error["code"] == status
    assert words in error["message"]
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_unknown_tenants_and_classes_are_refused(server: Server, path: str, stream: bool) -> None:
    assert_refused(ask(server, "eve", path, stream=stream), 403, "belongs to no tenant")
    assert_refused(ask(server, "two", path, "quick", stream=stream), 403, "may not use the class 'quick'")
    assert_refused(ask(server, "free", path, "slow", stream=stream), 400, "There is no class 'slow'")
    answer = ask(server, "free", path, "flex", stream=stream)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")], "it has no limits"


def test_what_makes_no_tokens_asks_for_no_tenant(server: Server) -> None:
    assert httpx.get(f"{server.url}/v1/models").status_code == 200
    assert httpx.post(f"{server.url}/tokenize", json={"model": "tiny", "prompt": "Hello"}).status_code == 200


def test_beyond_its_limit_of_requests_a_tenant_is_told_when_to_come_back(server: Server) -> None:
    answers = [ask(server, "two", stream=number == 1) for number in range(2)]
    assert [each.status_code for each in answers] == [200, 200]
    assert [each.headers["x-ratelimit-remaining-requests"] for each in answers] == ["1", "0"]
    for path in ("/v1/completions", "/v1/chat/completions"):
        for stream in (False, True):
            answer = ask(server, "two", path, stream=stream)
            assert_refused(answer, 429, "may have 2 requests a minute")
            assert 20 <= int(answer.headers["retry-after"]) <= 30
            assert answer.headers["x-ratelimit-limit-requests"] == "2"
    refused = {"class": "flex", "code": "429"}
    wait_for(lambda: server.counted("llumnix_refused_requests_total", **refused) == 4, "four that were counted")


def test_request_with_more_tokens_than_a_minutes_worth_is_refused_also_as_a_stream(server: Server) -> None:
    """Known only when its prompt has been read, and vLLM has begun its answer."""
    for stream in (False, True):
        answer = ask(server, "few", prompt=LONG, stream=stream)
        assert_refused(answer, 429, "may have 20 tokens a minute, and this request needs")
        assert "retry-after" not in answer.headers
        assert answer.headers["x-ratelimit-remaining-tokens"] == "20"
    assert ask(server, "few").headers["x-ratelimit-limit-tokens"] == "20"


def test_second_request_of_a_tenant_who_may_have_one_waits_and_then_is_served(server: Server) -> None:
    url, body = f"{server.url}/v1/completions", {"model": "tiny", "prompt": "Hello", "ignore_eos": True}
    long = body | {"max_tokens": 8000, "stream": True}
    with httpx.stream("POST", url, json=long, headers={"X-Tenant": "single"}, timeout=60) as first:
        lines = first.iter_lines()  # to be kept: its end is that of the connection
        next(lines)
        waiting, answers = in_background(lambda: ask(server, "single"))
        with pytest.raises(httpx.ReadTimeout):  # and this one goes while it waits
            httpx.post(url, json=body | {"max_tokens": 3}, headers={"X-Tenant": "single"}, timeout=0.5)
        assert ask(server, "free").status_code == 200, "others do not wait for it"
        assert waiting.is_alive()
    waiting.join(timeout=60)
    assert [each.status_code for each in answers] == [200]
    assert ask(server, "single").status_code == 200


def test_requests_of_classes_with_targets_are_measured(server: Server) -> None:
    counted = {"class": "quick", "met": "yes"}
    time.sleep(1.1)  # the text of the metrics is a second old at most
    before = server.counted("llumnix_class_targets_total", **counted)
    assert ask(server, "free").status_code == 200
    wait_for(lambda: server.counted("llumnix_class_targets_total", **counted) == before + 2, "both targets")
    assert server.counted("llumnix_admitted_requests_total", **{"class": "quick"}) >= 1
    rows = httpx.get(f"{server.url}/llumnix/v1/classes").json()["classes"]
    (free,) = (row for row in rows if (row["class"], row["tenant"]) == ("quick", "free"))
    assert free["ttft_met"] == free["tpot_met"] > 0
    assert (free["ttft_missed"], free["held"], free["running"], free["refused"]) == (0, 0, 0, {})
    assert free["tokens_per_minute"] > 0


def test_file_is_read_again_while_it_serves(server: Server) -> None:
    again = server.post("/llumnix/v1/classes/reload")
    assert (again.status_code, again.json()) == (200, {"ok": True, "classes": 2, "tenants": 4})
    assert ask(server, "free").status_code == 200


def in_background(work: Callable[[], httpx.Response]) -> tuple[threading.Thread, list[httpx.Response]]:
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()
    return thread, answers
