"""The text of `GET /metrics` is made beside the streams, and not more often than it changes."""

from __future__ import annotations

import asyncio
import gzip
import threading
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

pytest.importorskip("vllm")

import sys

from fastapi import FastAPI
from frame.server import wait_for
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from vllm.entrypoints.serve.instrumentator import metrics as vllms

from llumnix.engine.vllm.front_end import exposition as module
from llumnix.engine.vllm.front_end import together
from llumnix.engine.vllm.front_end.exposition import MetricsText
from llumnix.engine.vllm.front_end.gauges import ServerSeen


class Writer:
    """Takes its time, and remembers who asked for it."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.turns_s: list[float] = []
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self, seen: ServerSeen) -> bytes:
        self.threads.append(threading.current_thread())
        self.turns_s.append(sys.getswitchinterval())
        time.sleep(0.05)
        assert self.may_end.wait(60.0)
        return b"text %d" % len(self.threads)


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    made = Writer()
    monkeypatch.setattr(module, "exposition", made)
    return made


async def test_many_who_ask_at_once_get_one_text(writer: Writer) -> None:
    text = MetricsText(ServerSeen)
    assert {answer.body for answer in await asyncio.gather(*(text.answer("") for _ in range(20)))} == {b"text 1"}
    assert (await text.answer("")).body == b"text 1"


async def test_a_little_later_there_is_another(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REST", 0.0)
    text = MetricsText(ServerSeen)
    assert [(await text.answer("")).body, (await text.answer("")).body] == [b"text 1", b"text 2"]


async def test_event_loop_goes_on_while_it_is_written(writer: Writer) -> None:
    usual_s = sys.getswitchinterval()
    writer.may_end.clear()
    reading = asyncio.create_task(MetricsText(ServerSeen).answer(""))
    await asyncio.to_thread(wait_for, lambda: writer.threads, "its beginning")
    writer.may_end.set()
    await reading
    assert writer.threads != [threading.main_thread()]
    assert writer.turns_s[0] < usual_s == sys.getswitchinterval()


async def test_an_error_is_told_to_who_asked_and_the_next_one_is_served(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MetricsText(ServerSeen)
    with monkeypatch.context() as broken:
        broken.setattr(module, "exposition", lambda seen: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await text.answer("")
    assert (await text.answer("")).body == b"text 1"


@pytest.mark.parametrize(
    ("encodings", "zipped"),
    [
        ("gzip", True),
        ("deflate, gzip;q=0.9", True),
        ("GZIP; q=0.001", True),
        ("", False),
        ("identity, x-gzip", False),
        ("gzip;q=0", False),
        ("identity, gzip; q=0.000", False),
    ],
)
async def test_whoever_takes_gzip_gets_it(writer: Writer, encodings: str, zipped: bool) -> None:
    answer = await MetricsText(ServerSeen).answer(encodings)
    assert (answer.headers.get("content-encoding"), answer.headers["vary"]) == (
        "gzip" if zipped else None,
        "Accept-Encoding",
    )
    body = bytes(answer.body)
    assert (gzip.decompress(body) if zipped else body) == b"text 1"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
async def test_wherever_vllm_tells_its_metrics_those_of_the_server_are_told(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    """vLLM's own text is of one front end, and made on its event loop."""
    monkeypatch.setattr(vllms, "get_prometheus_registry", CollectorRegistry)
    monkeypatch.setattr(together, "seen_by", lambda board: ServerSeen())
    app, nobody = FastAPI(), SimpleNamespace()
    vllms.attach_router(app)
    together.add_routes_of_all(app, nobody, nobody)  # type: ignore[arg-type]
    transport: Any = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, CONTENT_TYPE_LATEST)
    assert answer.headers["content-encoding"] == "gzip"
    assert len(writer.threads) == 1
