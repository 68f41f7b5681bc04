"""What others log in a front end: vLLM's server sets some of it up anew, and imports what does."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

pytest.importorskip("vllm")

from vllm.entrypoints.anthropic import api_router as messages

from llumnix.cluster.json_logs import CONFIG
from llumnix.engine.vllm.front_end.members import no_instance
from llumnix.engine.vllm.front_end.others_logs import (
    keep_quiet_about_refusals,
    leave_out_of_access_log,
    warnings_still_told,
)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    names = (None, "llumnix", "vllm", "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", messages.__name__)
    loggers = [logging.getLogger(name) for name in names]
    before = [(each.level, each.propagate, each.handlers[:], each.filters[:]) for each in loggers]
    yield
    for logger, (level, propagate, handlers, filters) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers, logger.filters = propagate, handlers, filters


@pytest.mark.parametrize("paths", ["/health,/metrics", " /metrics, /health ,"])
def test_probes_are_left_out_of_the_access_log_in_lines_of_json(capsys: pytest.CaptureFixture[str], paths: str) -> None:
    """The configuration of JSON is a file, beside which vLLM forgets them."""
    leave_out_of_access_log(paths)
    uvicorn.Config("app", log_config=json.loads(CONFIG.read_text()), log_level="info")
    for path in ("/health", "/v1/models", "/metrics?x=1"):
        logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "10.0.0.9:7", "GET", path, "1.1", 200)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == '10.0.0.9:7 - "GET /v1/models HTTP/1.1" 200'


def test_all_is_in_the_access_log_unless_somebody_asks() -> None:
    leave_out_of_access_log(None)
    assert logging.getLogger("uvicorn.access").filters == []


def test_warnings_of_others_are_told_whatever_the_app_imports() -> None:
    with warnings_still_told():
        importlib.import_module("model_hosting_container_standards.logging_config").configure_root_logger()
        assert not logging.getLogger("opentelemetry.exporter").isEnabledFor(logging.WARNING)
    assert logging.getLogger("opentelemetry.exporter").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize(
    ("error", "status", "logged"),
    [(no_instance(), 503, 0), (ZeroDivisionError(), 500, 1)],
    ids=["it is refused", "something is wrong"],
)
@pytest.mark.parametrize("route", ["create_messages", "count_tokens"])
async def test_refused_message_is_no_failure_in_the_log(
    monkeypatch: pytest.MonkeyPatch, route: str, error: Exception, status: int, logged: int
) -> None:
    told: list[logging.LogRecord] = []
    keep_quiet_about_refusals()
    monkeypatch.setattr(messages.logger, "handlers", [handler := logging.Handler()])
    monkeypatch.setattr(handler, "emit", told.append)

    async def fails(*_: Any) -> None:
        raise error

    state = SimpleNamespace(anthropic_serving_messages=SimpleNamespace(**{route: fails}))
    stays = SimpleNamespace(app=SimpleNamespace(state=state), receive=asyncio.Event().wait)
    answer = await getattr(messages, route)(None, raw_request=stays)
    assert (answer.status_code, len(told)) == (status, logged)
