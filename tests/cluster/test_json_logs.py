"""Logs as lines of JSON: the same fields from whoever writes, and words of the dead that can still be read."""

from __future__ import annotations

import json
import logging
import logging.config
import multiprocessing
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from llumnix.cluster import json_logs
from llumnix.cluster.console import Voice
from llumnix.cluster.json_logs import CONFIG, JsonLines, words_of
from llumnix.cluster.logs import last_words
from llumnix.cluster.service_manager import ServiceManager

FIELDS = {"at", "level", "process", "pid", "logger", "message"}


def record(message: str, *arguments: object, error: Exception | None = None) -> str:
    exc_info = None if error is None else (type(error), error, None)
    made = logging.LogRecord("llumnix.x", logging.WARNING, "x.py", 1, message, arguments, exc_info)
    return JsonLines().format(made)


def test_line_has_all_that_a_collector_wants() -> None:
    line = json.loads(record("%d of\n%s", 3, "“four”"))
    assert set(line) == FIELDS
    assert (line["level"], line["logger"], line["message"]) == ("warning", "llumnix.x", "3 of\n“four”")
    assert datetime.fromisoformat(line["at"]).tzinfo is not None


def test_lines_stay_lines() -> None:
    text = record("first\nsecond", error=ValueError("no\nroom"))
    assert "\n" not in text
    assert json.loads(text)["error"].endswith("ValueError: no\nroom")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (record("gone", error=ValueError("no room")), "ValueError: no room"),
        (record("gone"), "gone"),
        ("plain text", "plain text"),
        ('{"at": "2026-11-27T10:00', '{"at": "2026-11-27T10:00'),
        ('{"at": 1}', '{"at": 1}'),
    ],
)
def test_words_of_a_line(line: str, words: str) -> None:
    assert words_of(line) == words


def test_launcher_finds_the_last_words_of_a_process_that_logged_in_json(tmp_path: Path) -> None:
    log = tmp_path / "i0.log"
    log.write_text(record("it ends", error=ValueError("no room")) + "\n" + record("a late word") + "\n")
    assert last_words(log) == "ValueError: no room"


def test_what_the_launcher_says_is_json_too(capfd: pytest.CaptureFixture[str]) -> None:
    voice = Voice("json", ServiceManager({}))
    voice.say("i0 ready in 1.6 s")
    voice.say("i0 died: killed by SIGKILL", warning=True)
    voice.close()
    said = capfd.readouterr()
    assert json.loads(said.out) | {"at": "", "pid": 0} == {
        "at": "",
        "level": "info",
        "process": "launcher",
        "pid": 0,
        "logger": "llumnix",
        "message": "i0 ready in 1.6 s",
    }
    assert json.loads(said.err)["level"] == "warning"


def test_a_process_of_ours_logs_so_whoever_logs_in_it() -> None:
    program = (
        "import logging; from llumnix.cluster import json_logs; json_logs.begin('scheduler');"
        "logging.getLogger('llumnix.control').info('ours'); logging.getLogger('uvicorn.access').info('theirs');"
        "logging.getLogger('vllm.engine').debug('too much'); logging.getLogger('httpx').info('too much')"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in run.stderr.splitlines()]
    assert [line["message"] for line in lines] == ["ours", "theirs"]
    assert {line["process"] for line in lines} == {"scheduler"}
    assert all(set(line) == FIELDS for line in lines)


def test_process_that_is_going_to_import_vllm_has_a_name_and_the_settings_of_the_user() -> None:
    program = (
        "import logging, logging.config, os, json; from llumnix.cluster import json_logs;"
        "json_logs.begin_with_vllm('nursery', os.environ);"
        "logging.config.dictConfig(json.load(open(os.environ['VLLM_LOGGING_CONFIG_PATH'])));"
        "logging.getLogger('vllm.engine').warning('theirs')"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(run.stderr)["process"] == "nursery"
    environment = {"VLLM_LOGGING_CONFIG_PATH": "mine"}
    json_logs.begin_with_vllm(multiprocessing.current_process().name, environment)
    assert environment == {"VLLM_LOGGING_CONFIG_PATH": "mine"}


@pytest.mark.parametrize(("level", "said"), [("debug", ["0", "1", "2"]), ("", ["1", "2"]), ("Warning", ["2"])])
def test_vllm_s_level_is_taken_as_vllm_takes_it(level: str, said: list[str]) -> None:
    program = (
        "import logging; from llumnix.cluster import json_logs; json_logs.begin('scheduler');"
        "log = logging.getLogger('vllm.engine'); log.debug('0'); log.info('1'); log.warning('2')"
    )
    environment = os.environ | {"VLLM_LOGGING_LEVEL": level}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    assert [json.loads(line)["message"] for line in run.stderr.splitlines()] == said


@pytest.mark.parametrize(
    "flags",
    [
        ("--log-level", "DEBUG"),
        ("--log-level=DEBUG", "--logging-config.log_level", "ERROR"),
        ("--logging-config.log_level=DEBUG",),
        ("--logging-config", '{"log_level": "DEBUG"}'),
    ],
)
def test_level_by_a_flag_of_vllm_s_goes_before_that_of_the_environment(flags: tuple[str, ...]) -> None:
    """A configuration in a file, as JSON's is to vLLM, it asks no flag. Workers that it spawns have the same."""
    program = (
        "import json, logging.config, os, subprocess, sys; from llumnix.cluster import json_logs;"
        f"json_logs.begin_with_vllm('nursery', os.environ, {flags!r});"
        "set_up = 'import json, logging.config, os;"
        'logging.config.dictConfig(json.load(open(os.environ["VLLM_LOGGING_CONFIG_PATH"])));'
        'logging.getLogger("vllm.engine").debug("0")\'; exec(set_up); subprocess.run([sys.executable, \'-c\', set_up])'
    )
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert [json.loads(line)["message"] for line in run.stderr.splitlines()] == ["0", "0"]


@pytest.mark.parametrize("flags", [(), ("--logging-config", "{"), ("--logging-config", "[]"), ("--logging-config",)])
def test_no_flag_for_a_level_or_one_that_vllm_will_refuse(flags: tuple[str, ...]) -> None:
    environment: dict[str, str] = {}
    json_logs.begin_with_vllm(multiprocessing.current_process().name, environment, flags)
    assert environment == {"VLLM_LOGGING_CONFIG_PATH": str(CONFIG)}


def test_stream_that_vllm_is_told_to_write_to_is_taken() -> None:
    program = "import logging; from llumnix.cluster import json_logs; json_logs.begin('s'); logging.warning('x')"
    environment = os.environ | {"VLLM_LOGGING_STREAM": "ext://sys.stdout"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(run.stdout)["message"] == "x"
    assert run.stderr == ""


def test_file_that_vllm_reads_is_there() -> None:
    assert json.loads(CONFIG.read_text())["version"] == 1
