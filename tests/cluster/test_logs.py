from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from llumnix.cluster import logs
from llumnix.cluster.logs import LogFolder, last_words, open_log, rotate
from llumnix.config import ClusterConfig
from llumnix.errors import UsageError

TRACEBACK = """\
INFO 11-23 04:00:00 [model.py:1] loading
Traceback (most recent call last):
  File "core.py", line 1, in run
    raise ValueError("no room")
ValueError: no room
[rank0]:[W1123 04:00:01 socket.cpp:1] a late warning
"""

PREFIXED = """\
(EngineCore pid=12) ERROR 11-23 04:00:00 [core.py:9] Traceback (most recent call last):
(EngineCore pid=12) ERROR 11-23 04:00:00 [core.py:9]   File "core.py", line 1, in run
(EngineCore pid=12) ERROR 11-23 04:00:00 [core.py:9] vllm.errors.EngineDeadError: gone
"""

GROUP = """\
  + Exception Group Traceback (most recent call last):
  |   File "serve.py", line 1, in _serve_all
  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "serve.py", line 2, in _serve_http
    | FileNotFoundError: [Errno 2] No such file or directory: 'cert.pem'
    +------------------------------------
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GROUP, "FileNotFoundError: [Errno 2] No such file or directory: 'cert.pem'"),
        (TRACEBACK, "ValueError: no room"),
        (PREFIXED, "vllm.errors.EngineDeadError: gone"),
        ("first\nlast\n\n", "last"),
        ("", ""),
    ],
)
def test_last_words_are_the_last_exception_or_else_the_last_line(tmp_path: Path, text: str, words: str) -> None:
    log = tmp_path / "i0.log"
    log.write_text(text)
    assert last_words(log) == words


def test_no_log_no_words(tmp_path: Path) -> None:
    assert last_words(tmp_path / "i0.log") == ""


def test_writer_goes_on_after_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "i0.log"
    with log.open("a") as writer:
        writer.write("x" * 2000)
        writer.flush()
        rotate(log, largest=1000)
        writer.write("y")
    assert log.read_text() == "y"
    assert (tmp_path / "i0.log.1").read_text() == "x" * 2000


def test_small_logs_are_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "i0.log"
    log.write_text("short")
    rotate(log, largest=1000)
    assert [path.name for path in tmp_path.iterdir()] == ["i0.log"]


def test_log_that_cannot_be_copied_is_emptied_and_harms_nobody(tmp_path: Path) -> None:
    """As on a full disk. Whoever rotates is the launcher: it must not end for that."""
    for name in ("i0", "i1"):
        (tmp_path / f"{name}.log").write_text("x" * 2000)
    (tmp_path / "i0.log.1").mkdir()
    for name in ("i0", "i1"):
        rotate(tmp_path / f"{name}.log", largest=1000)
    assert [(tmp_path / f"{name}.log").read_text() for name in ("i0", "i1")] == ["", ""]
    assert (tmp_path / "i1.log.1").read_text() == "x" * 2000


def test_logs_of_others_in_the_folder_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = LogFolder(ClusterConfig(log_dir=str(tmp_path)), tmp_path)
    for name in ("i0", "nginx"):
        (tmp_path / f"{name}.log").write_text("x" * 2000)
    monkeypatch.setattr(logs.rotate, "__defaults__", (1000,))
    folder.keep_small(["nursery", "scheduler", "front-0", "i0"])
    assert (tmp_path / "i0.log").read_text() == ""
    assert (tmp_path / "nginx.log").read_text() == "x" * 2000


def test_two_servers_do_not_write_into_one_folder(tmp_path: Path) -> None:
    cluster = ClusterConfig(log_dir=str(tmp_path))
    LogFolder(cluster, tmp_path)
    LogFolder(cluster, tmp_path, alone=False)  # that of one of its instances, which Ray has put on the same machine
    with pytest.raises(
        UsageError,
        match=f"^--log-dir {tmp_path} is another server's, which may just be ending: each needs a folder of its own.$",
    ):
        LogFolder(cluster, tmp_path)


def test_folder_in_which_nothing_can_be_written_is_told_before_anything_starts(tmp_path: Path) -> None:
    """As where the nursery's log is another user's, of an earlier server."""
    (tmp_path / "nursery.log").mkdir()
    with pytest.raises(UsageError, match=r"cannot be written: is a directory \(.*/nursery.log\)\.$"):
        LogFolder(ClusterConfig(log_dir=str(tmp_path)), tmp_path)


@pytest.mark.parametrize("gone", [True, False])
def test_log_whose_folder_is_gone_stops_nobody(tmp_path: Path, gone: bool) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    shutil.rmtree(folder) if gone else (folder / "i0.log").mkdir()
    with open(open_log(folder / "i0.log"), "a") as log:
        log.write("x")
    assert not gone or (folder / "i0.log").read_text() == "x"


def test_logs_of_instances_that_ended_long_ago_go(tmp_path: Path) -> None:
    """One that cannot start is tried again for as long as the server runs. On Ray each has a nursery of its own."""
    folder = LogFolder(ClusterConfig(), tmp_path)
    for name in ("front-0", *(f"i{number}" for number in range(250))):
        path = folder.file(name)
        assert path is not None
        path.write_text("ValueError: no room")
        path.with_suffix(".log.1").touch()
        (tmp_path / "logs" / f"nursery-{name}.log").touch()
        assert folder.end_of(name, "exit code 1") == "ValueError: no room"
    kept = {name.partition(".")[0] for name in os.listdir(tmp_path / "logs")}
    alive = {"front-0", *(f"i{number}" for number in range(150, 250))}
    assert kept == alive | {f"nursery-{name}" for name in alive}
