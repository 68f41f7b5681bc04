"""Logs as text: one line for each message, whoever chose the words in it, and of whom and when it is."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

from llumnix.cluster.logs import last_words
from llumnix.text_logs import PlainLines

LINE = r"\(%s pid=\d+\) %s \d\d-\d\d \d\d:\d\d:\d\d \[\S+:\d+\] %s"
"""As vLLM's."""
FORGED = "cmpl-1\n(scheduler pid=1) INFO 11-27 10:00:00 [a.py:1] i0 is idle \x1b[2K\u202e"


def line(message: str, *arguments: object, error: Exception | None = None) -> str:
    exc_info = None if error is None else (type(error), error, None)
    return PlainLines().format(logging.LogRecord("llumnix.x", logging.ERROR, "x.py", 1, message, arguments, exc_info))


def test_id_of_a_client_neither_begins_a_line_nor_reaches_the_terminal() -> None:
    said = line("request %s ends: %s", FORGED, FORGED)
    assert said.isprintable(), "so on one line"
    assert said.count("cmpl-1") == 2


def test_traceback_has_its_lines_and_nothing_for_the_terminal(tmp_path: Path) -> None:
    said = line("it fails", error=ValueError("no \x1b[2Kroom"))
    first, *_, last = said.split("\n")
    assert first.endswith("it fails")
    assert last == r"ValueError: no \x1b[2Kroom"
    (tmp_path / "i0.log").write_text(f"{said}\n{line('a late word')}\n")
    assert last_words(tmp_path / "i0.log") == r"ValueError: no \x1b[2Kroom"


def run(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_scheduler_tells_what_it_does_and_what_others_complain_of() -> None:
    ours, theirs = run(
        "import logging, runpy; from llumnix import text_logs; text_logs.begin('scheduler');"
        "runpy.run_module('llumnix.cluster.scheduler_process', run_name='as a process')['log'].info('ours');"
        "logging.getLogger('asyncio').info('too much');"
        "logging.getLogger('asyncio').warning('theirs')"
    )
    assert re.fullmatch(LINE % ("scheduler", "INFO", "ours"), ours)
    assert re.fullmatch(LINE % ("scheduler", "WARNING", "theirs"), theirs)


def test_beside_an_engine_that_sets_up_its_own_logs_ours_are_told_once() -> None:
    program = (
        "import logging, multiprocessing; from llumnix import text_logs; {theirs}"
        "text_logs.begin_beside_engine(); text_logs.begin_beside_engine();"
        "multiprocessing.current_process().name = 'i0';"
        "logging.getLogger('llumnix.x').info('ours'); logging.getLogger('llumnix.x').warning('louder')"
    )
    info, warning = run(program.format(theirs=""))
    assert re.fullmatch(LINE % ("i0", "INFO", "ours"), info)
    assert re.fullmatch(LINE % ("i0", "WARNING", "louder"), warning)
    assert run(program.format(theirs="logging.basicConfig(format='mine %(message)s');")) == ["mine louder"]


WORKER = """
import json, logging, logging.config, multiprocessing, os
from llumnix import text_logs
from llumnix.cluster.json_logs import CONFIG

def worker(as_json):
    if as_json:  # as vLLM does before it makes a worker
        logging.config.dictConfig(json.loads(CONFIG.read_text()))
        logging.getLogger("vllm.x").info("theirs")
    text_logs.begin_in_worker()
    logging.getLogger("llumnix.x").info("ours")

if __name__ == "__main__":
    multiprocessing.current_process().name = "i3"
    for as_json in (False, True):
        one = multiprocessing.get_context("spawn").Process(target=worker, args=(as_json,), name="VllmWorker-1")
        one.start()
        one.join()
"""


def test_worker_that_the_engine_spawns_says_of_which_instance_it_is(tmp_path: Path) -> None:
    """By vLLM's name for it all instances would have the same workers; and what is ours was bare text, or not told."""
    program = tmp_path / "program.py"
    program.write_text(WORKER)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    text, *as_json = done.stderr.splitlines()
    assert re.fullmatch(LINE % ("i3-worker-1", "INFO", "ours"), text)
    assert [json.loads(line)["message"] for line in as_json] == ["theirs", "ours"]
    assert {json.loads(line)["process"] for line in as_json} == {"i3-worker-1"}
