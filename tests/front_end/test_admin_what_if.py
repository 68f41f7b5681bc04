"""What a server answers that is asked what would have been otherwise: by a process of its own, one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

pytest.importorskip("vllm")

from admin_board import Board, ask
from frame.server import wait_for

from lived_run import SHORT, lived, recorded
from llumnix.api.what_if import WhatIfRun
from llumnix.engine.vllm.front_end.admin import what_if as module
from llumnix.whole_file import write_whole
from recorded_run import ended, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It takes a while to simulate."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_run(folder, recorded(lived()), unit_tokens=0)
    return folder


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "short"
    write_run(folder, recorded(lived(SHORT)), unit_tokens=0)
    return folder


@pytest.fixture
def board(run: Path, tmp_path: Path) -> Iterator[Board]:
    board = Board()
    board.have_recorder(run)
    board.spec.book.run_dir = str(tmp_path)
    yield board
    wait_for(lambda: not processes(), "no process")


def processes() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # another test's, that has ended
            found += [child] if "llumnix.whatif.asked" in child.cmdline() else []
    return found


def score_without_memory(pid: int) -> int:
    """By which the kernel chooses whom it ends when there is no memory left."""
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


async def begun(board: Board, *tries: str) -> dict[str, Any]:
    answer = await ask(board, "POST", "/whatif", json={"tries": list(tries)})
    assert answer.status_code == 202, answer.text
    said: dict[str, Any] = answer.json()
    return said


async def until(board: Board, what: str) -> dict[str, Any]:
    """The run, once it has that."""
    for _ in range(2000):
        told: dict[str, Any] = (await ask(board, "GET", "/whatif")).json()["run"]
        if told[what]:
            return told
        await asyncio.sleep(0.05)
    raise AssertionError(f"no {what} within 100 s: {told}")


async def refusal(board: Board, status: int, *tries: Any) -> str:
    answer = await ask(board, "POST", "/whatif", json={"tries": list(tries)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, status), answer.text
    reason: str = answer.json()["reason"]
    return reason


async def test_answer_is_what_the_command_finds_and_says_how_far_it_can_be_believed(board: Board, short: Path) -> None:
    board.log.recorder.folder = short
    assert (await ask(board, "GET", "/whatif")).json() == {"running": False, "run": None}
    said = await begun(board, "instances=3", "migration=off")
    assert (said["running"], said["run"]["total"], said["run"]["tries"]) == (True, 24, ["instances=3", "migration=off"])
    assert said["run"]["command"] == f"llumnix whatif {short} --try=instances=3 --try=migration=off --requests=5000"
    (process,) = processes()
    assert (process.nice(), process.num_threads()) == (19, 1)
    assert score_without_memory(process.pid) == 1000
    told = await until(board, "found")
    assert (told["done"], told["problem"]) == (24, None)
    grades = {each["metric"]["name"]: each["grade"] for each in told["found"]["known"]}
    assert grades["TTFT P50"] == "good", "what was recorded is what is simulated"
    fewer, still = told["found"]["tried"]
    assert (fewer["name"], still["name"]) == ("instances=3", "migration=off")
    assert all(each["low"] <= each["value"] <= each["high"] for each in fewer["predictions"] if each["value"])


async def test_another_one_waits_for_its_turn_and_one_that_is_cancelled_leaves_nothing(board: Board) -> None:
    await begun(board, "instances=3")
    assert await refusal(board, 409, "instances=3") == "Another one is under way; it can be cancelled."
    answer = (await ask(board, "DELETE", "/whatif")).json()
    assert (answer["running"], answer["run"]["problem"]) == (False, "It was cancelled.")
    assert processes() == []
    again = (await ask(board, "DELETE", "/whatif")).json()
    assert again == answer, "there is nothing to cancel"
    assert (await begun(board))["running"], "its place is free"
    await ask(board, "DELETE", "/whatif")


@pytest.mark.parametrize(
    ("tries", "words"),
    [
        (["instances=many"], "--try instances=many: instances are a number from 1 to "),
        (["policy=nothing"], "--try policy=nothing: "),
        (["knob=3"], "--try knob=3: "),
        (["instances=1..9"], "9 alternatives are too many: at most 8 at a time."),
        (["instances=5"] * 9, "9 alternatives are too many: at most 8 at a time."),
        ([5], "Alternatives are short texts such as 'instances=6', and not [5]."),
        (["i" * 201], "Alternatives are short texts"),
    ],
)
async def test_what_makes_no_sense_is_refused_and_what_was_found_before_stays(
    board: Board, tries: list[Any], words: str
) -> None:
    before = WhatIfRun(tries=[], folder="", command="", began_at_s=1.0, problem="It was cancelled.")
    write_whole(Path(board.spec.book.run_dir, "what-if"), msgspec.json.encode(before))
    assert (await refusal(board, 400, *tries)).startswith(words)
    assert (await ask(board, "GET", "/whatif")).json()["run"]["problem"] == "It was cancelled."


async def test_too_little_was_recorded(board: Board, tmp_path: Path) -> None:
    board.log.recorder.folder = tmp_path / "nothing"
    assert await refusal(board, 409) == "Nothing has been written down yet; ask again when some requests have ended."
    write_run(tmp_path / "little", [ended("a")])
    board.log.recorder.folder = tmp_path / "little"
    await begun(board)
    assert "50 are the fewest of which something can be said" in (await until(board, "problem"))["problem"]


async def test_one_that_takes_too_long_or_is_killed_is_said_to_have_come_to_nothing(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as hasty:
        hasty.setattr(module, "LONGEST_S", 0.3)
        await begun(board, "instances=3")
        assert (await until(board, "problem"))["problem"].startswith("It took longer than 300 s: fewer alternatives")
    await begun(board, "instances=3")
    processes()[0].kill()
    assert (await until(board, "problem"))["problem"] == "It ended: killed by SIGKILL."


async def test_server_that_records_nothing_has_nothing_to_ask_about() -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = await ask(Board(), method, "/whatif", json={"tries": []})
        assert (answer.status_code, answer.json()["reason"]) == (404, "The server was started without --record.")


def test_it_ends_with_the_front_end_that_was_asked(run: Path, tmp_path: Path) -> None:
    """Which is killed, so that it can do nothing for that any more."""
    asked = WhatIfRun(tries=[], folder=str(run), command=f"llumnix whatif {run}", began_at_s=0.0)
    code = (
        "import os, subprocess, sys, time\n"
        "words = [sys.executable, '-m', 'llumnix.whatif.asked', str(os.getpid()), *sys.argv[1:]]\n"
        "print(subprocess.Popen(words, stdout=subprocess.DEVNULL).pid, flush=True)\n"
        "time.sleep(60)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "what-if"), msgspec.json.encode(asked).decode()]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as front_end:
        assert front_end.stdout is not None
        child = psutil.Process(int(front_end.stdout.readline()))
        wait_for(lambda: child.nice() == 19, "it has begun")
        front_end.kill()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "it has ended")
