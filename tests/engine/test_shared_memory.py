"""What of /dev/shm goes with an instance: what it shared, and nothing that was there before."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
