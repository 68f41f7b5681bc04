"""What becomes of older recorded runs in a folder that has many."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from llumnix.record.read import read_run
from llumnix.record.runs import IN_USE_S, make_room
from recorded_run import ended, instance, looked, write_run

pytestmark = pytest.mark.io
OLD_S = 10 * IN_USE_S


def recorded(root: Path, day: int, *, kib: int = 64, age_s: float = OLD_S) -> Path:
    """A run of that day, whose requests are a file so large."""
    folder = root / f"2026-11-{day:02d}T12-00-00-000"
    write_run(folder, [ended("a"), looked(instance(1.0, "i0"))])
    with (folder / "requests-f0-000.jsonl").open("ab") as file:
        file.write(b" " * (kib << 10))  # a line that is not written to its end
    for path in folder.iterdir():
        os.utime(path, (time.time() - age_s,) * 2)
    return folder


def test_the_oldest_go_until_the_others_have_room(tmp_path: Path) -> None:
    runs = [recorded(tmp_path, day) for day in range(1, 6)]
    make_room(tmp_path, 200 << 10, runs[4])
    assert [run.exists() for run in runs] == [False, False, True, True, True], "two beside the newest"
    assert read_run(tmp_path).folder == runs[4]
    make_room(tmp_path, 0, runs[4])
    assert sorted(tmp_path.iterdir()) == [runs[4]]


def test_a_run_under_way_that_is_small_pushes_nothing_out(tmp_path: Path) -> None:
    """And so restarts that recorded nothing much do not."""
    large, *small = (recorded(tmp_path, day, kib=900 if day == 1 else 1) for day in range(1, 9))
    make_room(tmp_path, 1200 << 10, small[-1])
    assert large.exists()


def test_the_run_under_way_stays_and_so_does_that_of_another_server(tmp_path: Path) -> None:
    own, theirs = recorded(tmp_path, 1), recorded(tmp_path, 2, age_s=1.0)
    make_room(tmp_path, 0, own)
    assert (own.exists(), theirs.exists()) == (True, True)


def test_what_is_no_recorded_run_is_left_alone(tmp_path: Path) -> None:
    elsewhere = recorded(tmp_path / "elsewhere", 1)
    root = tmp_path / "runs"
    gone = recorded(root, 2)
    (gone / "mooncake.jsonl").write_text("exported")
    other = recorded(root, 3)
    other.rename(root / "keep this")
    (root / "2026-11-04T12-00-00-000").symlink_to(elsewhere)
    (root / "2026-11-05T12-00-00-000").mkdir()
    (root / "notes.txt").write_text("mine")
    make_room(root, 0, root / "2026-11-09T12-00-00-000")
    assert [path.name for path in gone.iterdir()] == ["mooncake.jsonl"]
    assert len([*(root / "keep this").iterdir()]) == 3
    assert elsewhere.exists()
    assert len([*elsewhere.iterdir()]) == 3
    assert (root / "notes.txt").exists()


def test_a_folder_that_is_not_there_yet_has_no_runs(tmp_path: Path) -> None:
    make_room(tmp_path / "later", 0, tmp_path / "later" / "run")
