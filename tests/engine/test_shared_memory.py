"""What of /dev/shm goes with an instance: what it shared, and nothing that was there before."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from llumnix.engine import shared_memory

ODD = os.fsdecode(b"\xff")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The instance's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def shared() -> Iterator[list[Path]]:
    files = [Path("/dev/shm", f"llumnix-test-{os.getpid()}-{name}") for name in ("weights", "queue", f"queue{ODD}")]
    yield files
    for file in files:
        file.unlink(missing_ok=True)


@pytest.fixture
def others(folder: Path) -> None:
    shared_memory.note_what_others_share(folder)


def mapped(path: Path) -> mmap.mmap:
    path.write_bytes(b"x" * mmap.PAGESIZE)
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def test_what_a_user_keeps_in_memory_stays_when_an_instance_that_read_it_is_gone(
    folder: Path, shared: list[Path]
) -> None:
    weights, *queues = shared
    held = [mapped(weights)]
    shared_memory.note_what_others_share(folder)
    held += map(mapped, queues)
    shared_memory.note_shared_memory()
    shared_memory.remove_shared_memory(folder)
    assert [file.exists() for file in shared] == [True, False, False]
    for each in held:
        each.close()


def test_what_cannot_be_told_apart_stays(folder: Path, shared: list[Path]) -> None:
    held = mapped(shared[0])
    shared_memory.note_shared_memory()
    shared_memory.remove_shared_memory(folder)
    assert shared[0].exists()
    held.close()


INSTANCE = """
import mmap, os, pathlib, sys, tempfile, time
from llumnix import linux
from llumnix.engine.shared_memory import noted_meanwhile
tempfile.tempdir = sys.argv[1]
with noted_meanwhile():
    instance = os.getpid()
    if os.fork() == 0:  # a worker
        linux.die_with_parent(instance)
        file = open(sys.argv[2], "w+b")
        file.truncate(mmap.PAGESIZE)
        held = mmap.mmap(file.fileno(), 0)
    {then}
"""


@pytest.mark.io
@pytest.mark.usefixtures("others")
@pytest.mark.parametrize("then", ["time.sleep(60)", "time.sleep(1); 1 / 0"])
def test_nothing_stays_of_an_instance_that_ends_while_its_workers_start(
    folder: Path, shared: list[Path], then: str
) -> None:
    """They have noted nothing yet: killed, as by who ends the server meanwhile, or after an error of its own."""
    program = INSTANCE.format(then=then)
    with subprocess.Popen([sys.executable, "-c", program, folder, shared[1]], stderr=subprocess.DEVNULL) as instance:
        waits(lambda: any(folder.glob("shared-memory.*")))
        (watcher,) = {int(note.suffix[1:]) for note in folder.glob("shared-memory.*")} - {instance.pid}
        if "sleep(60)" in then:
            instance.kill()
        instance.wait(10)
    waits(lambda: not psutil.pid_exists(watcher))
    assert shared[1].exists()
    shared_memory.remove_shared_memory(folder)
    assert not shared[1].exists()


def waits(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


@pytest.mark.usefixtures("others")
def test_nobody_watches_any_more_once_the_workers_are_there() -> None:
    others_children = set(psutil.Process().children())
    with shared_memory.noted_meanwhile():
        (watcher,) = set(psutil.Process().children()) - others_children
    assert not watcher.is_running()
