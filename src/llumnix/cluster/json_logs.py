"""Logs as lines of JSON (`--log-format json`): one shape for our processes, vLLM's and uvicorn's.

`CONFIG` is a file, since vLLM reads its logging from one (`VLLM_LOGGING_CONFIG_PATH`, vllm/logger.py), also in workers.
What is printed past `logging`, such as the last words of a process that dies, stays text.
"""

from __future__ import annotations

import json
import logging
import logging.config
import multiprocessing
import os
from collections.abc import MutableMapping
from datetime import UTC, datetime
from pathlib import Path

CONFIG = Path(__file__).with_suffix(".json")
"""In the form of `logging.config.dictConfig`."""

VLLM_LEVEL = (os.environ.get("VLLM_LOGGING_LEVEL") or "INFO").upper()
"""Read by `CONFIG`; in capitals, as vLLM takes it."""


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        error = self.formatException(record.exc_info) if record.exc_info else None
        return json_line(
            record.created,
            record.levelname,
            record.getMessage(),
            process=record.processName,
            name=record.name,
            error=error,
        )


def json_line(
    at_s: float, level: str, message: str, *, process: str | None, name: str, error: str | None = None
) -> str:
    """`at_s`: Unix time. `process`: front-0, scheduler, or the id of an instance. `error`: a traceback."""
    at = datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {
        "at": at,
        "level": level.lower(),
        "process": process,
        "pid": os.getpid(),
        "logger": name,
        "message": message,
    }
    return json.dumps(line if error is None else line | {"error": error}, ensure_ascii=False)


def begin(process: str) -> None:
    """In a process without vLLM."""
    multiprocessing.current_process().name = process
    logging.config.dictConfig(json.loads(CONFIG.read_text()))


def begin_with_vllm(process: str, environment: MutableMapping[str, str]) -> None:
    """Before vLLM is imported. A configuration of the user's own stays."""
    multiprocessing.current_process().name = process
    environment.setdefault("VLLM_LOGGING_CONFIG_PATH", str(CONFIG))


def words_of(line: str) -> str:
    """The last line of what was said in it; `line` itself if it is none of these."""
    if not line.startswith('{"at": '):
        return line
    try:
        said = json.loads(line)
        return str(said.get("error") or said["message"]).strip().rpartition("\n")[2]
    except (ValueError, KeyError):  # cut off
        return line
