"""Logs as text: our lines look like vLLM's, whose configuration is for vLLM alone, and each stays one line.

Ids of clients are in them. What these hold may neither begin a line that another process seems to have written nor move
the cursor of who reads (plain.py).
"""

from __future__ import annotations

import logging
import multiprocessing
from types import TracebackType

from llumnix.plain import plain, plain_lines

_FORMAT = "(%(processName)s pid=%(process)d) %(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s"
_DATE_FORMAT = "%m-%d %H:%M:%S"

_OURS = logging.getLogger("llumnix")

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class PlainLines(logging.Formatter):
    """A traceback beside a message has its own lines."""

    def __init__(self) -> None:
        super().__init__(_FORMAT, _DATE_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return plain(super().formatMessage(record))

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802
        return plain_lines(super().formatException(ei))


def begin(process: str) -> None:
    """In a process without vLLM."""
    multiprocessing.current_process().name = process
    _take(logging.getLogger())
    _OURS.setLevel(logging.INFO)


def begin_beside_engine() -> None:
    """When the engine has set up what it logs: ours too, unless that is a configuration which takes our lines. A
    user's may, and the one for JSON does."""
    if not _OURS.hasHandlers():
        _take(_OURS)
        _OURS.setLevel(logging.INFO)


def begin_in_worker() -> None:
    """In a process that the engine has made for one of its workers, once what it logs is set up there."""
    worker = multiprocessing.current_process()
    worker.name = with_instance(worker.name)
    begin_beside_engine()


def with_instance(process: str) -> str:
    """The name of this process: `i0-worker-1` for what vLLM calls `VllmWorker-1` in every instance."""
    instance = multiprocessing.parent_process()
    if instance is None or process.startswith(f"{instance.name}-"):
        return process
    return f"{instance.name}-{process.removeprefix('Vllm').lower()}"


def _take(logger: logging.Logger) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(PlainLines())
    logger.addHandler(handler)
