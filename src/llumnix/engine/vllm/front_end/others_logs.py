"""What others log in a front end: as its user asked for it, whatever vLLM's server sets up or imports."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from vllm.exceptions import GracefulHTTPError
from vllm.logging_utils import UvicornAccessLogFilter


@contextmanager
def warnings_still_told() -> Iterator[None]:
    """While vLLM's app is built. What it imports for SageMaker lets the root logger tell errors alone, and with it all
    whose level nobody set: asyncio, OpenTelemetry, …"""
    root = logging.getLogger()
    level = root.level
    try:
        yield
    finally:
        root.setLevel(level)


def leave_out_of_access_log(paths: str | None) -> None:
    """`--disable-access-log-for-endpoints`, on every port. vLLM itself forgets it beside a logging configuration, which
    `--log-format json` is."""
    if left_out := [path.strip() for path in (paths or "").split(",") if path.strip()]:
        logging.getLogger("uvicorn.access").addFilter(UvicornAccessLogFilter(left_out))


def keep_quiet_about_refusals() -> None:
    """What is answered with a status of its own, such as 503 while no instance runs, `/v1/messages` takes for a failure
    of the server, and logs with thirty lines of traceback each time. vLLM's other routes do not."""
    logging.getLogger("vllm.entrypoints.anthropic.api_router").addFilter(_is_no_refusal)


def _is_no_refusal(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not isinstance(record.exc_info[1], GracefulHTTPError)
