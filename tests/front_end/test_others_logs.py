"""What others log in a front end: vLLM's server sets some of it up anew, and imports what does."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator

import pytest
import uvicorn

pytest.importorskip("vllm")

from llumnix.cluster.json_logs import CONFIG
from llumnix.engine.vllm.front_end.others_logs import leave_out_of_access_log, warnings_still_told


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    names = (None, "llumnix", "vllm", "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
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
