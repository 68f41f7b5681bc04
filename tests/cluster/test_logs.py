from __future__ import annotations

from pathlib import Path

import pytest

from llumnix.cluster.logs import last_words, rotate

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


@pytest.mark.parametrize(
    ("text", "words"),
    [
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
        rotate(tmp_path, largest=1000)
        writer.write("y")
    assert log.read_text() == "y"
    assert (tmp_path / "i0.log.1").read_text() == "x" * 2000


def test_small_logs_are_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "i0.log"
    log.write_text("short")
    rotate(tmp_path, largest=1000)
    assert [path.name for path in tmp_path.iterdir()] == ["i0.log"]


def test_log_that_cannot_be_copied_is_emptied_and_harms_nobody(tmp_path: Path) -> None:
    """As on a full disk. Whoever rotates is the launcher: it must not end for that."""
    for name in ("i0", "i1"):
        (tmp_path / f"{name}.log").write_text("x" * 2000)
    (tmp_path / "i0.log.1").mkdir()
    rotate(tmp_path, largest=1000)
    assert [(tmp_path / f"{name}.log").read_text() for name in ("i0", "i1")] == ["", ""]
    assert (tmp_path / "i1.log.1").read_text() == "x" * 2000
