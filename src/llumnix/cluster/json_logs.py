"""Logs as lines of JSON (`--log-format json`): one shape for our processes, vLLM's and uvicorn's.

`CONFIG` is a file, since vLLM reads its logging from one (`VLLM_LOGGING_CONFIG_PATH`, vllm/logger.py), also in workers.
What is printed past `logging`, such as the last words of a process that dies, stays text.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.config
import multiprocessing
import os
import sys
from collections.abc import MutableMapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from llumnix.flags import flag_value
from llumnix.text_logs import with_instance

CONFIG = Path(__file__).with_suffix(".json")
"""In the form of `logging.config.dictConfig`."""

_LEVEL, _LEVEL_BY_FLAG = "VLLM_LOGGING_LEVEL", "LLUMNIX_VLLM_LOGGING_LEVEL"


class OfVllm:
    """What `CONFIG` takes from vLLM's flags and variables, in each process when it sets up its logs."""

    @property
    def level(self) -> str:
        """In capitals, as vLLM takes it. Its flag goes first."""
        return (os.environ.get(_LEVEL_BY_FLAG) or os.environ.get(_LEVEL) or "INFO").upper()

    @property
    def stream(self) -> TextIO:
        """Other than vLLM's, ours is stderr unless the user says otherwise."""
        return sys.stdout if os.environ.get("VLLM_LOGGING_STREAM") == "ext://sys.stdout" else sys.stderr


VLLM = OfVllm()


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        error = self.formatException(record.exc_info) if record.exc_info else None
        return json_line(
            record.created,
            record.levelname,
            record.getMessage(),
            process=with_instance(record.processName or ""),
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


def begin_with_vllm(process: str, environment: MutableMapping[str, str], engine_flags: Sequence[str] = ()) -> None:
    """Before vLLM is imported. A configuration of the user's own stays; of ours, which vLLM takes for one, vLLM asks no
    flag."""
    multiprocessing.current_process().name = process
    environment.setdefault("VLLM_LOGGING_CONFIG_PATH", str(CONFIG))
    if level := _level_by_flag(engine_flags):
        environment[_LEVEL_BY_FLAG] = level  # not vLLM's: it is more than a level there


def _level_by_flag(engine_flags: Sequence[str]) -> str:
    """As vLLM reads it (`configure_logging_from_args`); empty if none names one, or none that vLLM could read."""
    if level := flag_value(engine_flags, "--log-level") or flag_value(engine_flags, "--logging-config.log-level"):
        return level
    with contextlib.suppress(ValueError, AttributeError):
        return str(json.loads(flag_value(engine_flags, "--logging-config") or "{}").get("log_level", ""))
    return ""


def words_of(line: str) -> str:
    """The last line of what was said in it; `line` itself if it is none of these."""
    if not line.startswith('{"at": '):
        return line
    try:
        said = json.loads(line)
        return str(said.get("error") or said["message"]).strip().rpartition("\n")[2]
    except (ValueError, KeyError):  # cut off
        return line
