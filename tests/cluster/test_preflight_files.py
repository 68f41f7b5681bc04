"""Files: whether a process may hold so many, and whether what is asked for can be written."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llumnix.cluster.devices import check_shared_memory, needed_bytes
from llumnix.cluster.preflight import check, check_files
from llumnix.cluster.preflight_paths import check_decision_log, check_model, check_record
from llumnix.decision_log import read_log
from llumnix.errors import UsageError
from llumnix.flags import parse_serve
from llumnix.record.read import read_about
from llumnix.recording import RECORD
from llumnix.tiny_model import ensure


@pytest.mark.parametrize(("instances", "hard", "fits"), [
    (1024, 4096, False), (1024, 8192, True), (2, 1024, True), (4096, resource.RLIM_INFINITY, True),
])  # fmt: skip
def test_open_files_for_so_many_instances(
    monkeypatch: pytest.MonkeyPatch, instances: int, hard: int, fits: bool
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, hard))
    arguments = parse_serve(["--instances", str(instances)])
    if fits:
        check_files(arguments)
        return
    with pytest.raises(UsageError, match="1024 instances need 4196 open files in a process, but the system allows"):
        check_files(arguments)


@pytest.mark.parametrize(
    ("flags", "free_mib", "fits"),
    [
        ("--tensor-parallel-size 2", 64, False),
        ("--tensor-parallel-size 2", 1024, True),
        ("--pipeline-parallel-size 2", 64, False),
        ("", 64, True),
    ],
)
def test_shared_memory_of_several_workers(
    monkeypatch: pytest.MonkeyPatch, flags: str, free_mib: int, fits: bool
) -> None:
    """Docker's 64 MiB are too little for them."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free_mib << 20))
    arguments = parse_serve(flags.split())
    if fits:
        check_shared_memory(arguments)
        return
    with pytest.raises(
        UsageError, match=r"need 240 MiB of /dev/shm, where only 64 MiB are free: .*--shm-size=1g or --ipc"
    ):
        check_shared_memory(arguments)


@pytest.mark.parametrize(
    ("flags", "variable", "sentence"),
    [
        ("--record {}", "", "^--record {} cannot be written: {} is no folder that we may write to.$"),
        ("", "{}", "^LLUMNIX_RECORD {} cannot be written: {} is no folder that we may write to.$"),
    ],
)
def test_what_cannot_be_recorded_is_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, variable: str, sentence: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv(RECORD, variable.format(file))
    words = ["--engine-module", "another", "--port", "0", *flags.format(file).split()]
    with pytest.raises(UsageError, match=sentence.format(file, file)):
        check(parse_serve(words))


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that may not be entered, as root's for others; root himself may enter each."""
    folder = tmp_path / "closed"
    (folder / "inner").mkdir(parents=True)
    stat, access = os.stat, os.access

    def refused(path: Any, *how: Any, **also: Any) -> os.stat_result:
        if str(path).startswith(f"{folder}/"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *how, **also)

    def may(path: Any, mode: int) -> bool:
        return not mode & os.X_OK if str(path) == str(folder) else access(path, mode)

    monkeypatch.setattr(os, "stat", refused)
    monkeypatch.setattr(os, "access", may)
    return folder


@pytest.mark.parametrize(
    ("asks", "sentence"),
    [
        (lambda path: check_record("--record", str(path)), "^--record {} cannot be written: {folder} is no folder"),
        (lambda path: check_decision_log(str(path / "x")), "^--decision-log {}/x cannot be written: {} is no folder"),
        (lambda path: check_model(str(path)), "^There is no model at {}.$"),
        (ensure, "^The tiny model cannot be written to {}: Permission denied.$"),
        (read_about, "^There is no recorded run {}.$"),
        (read_log, "^There is no decision log {}.$"),
    ],
    ids=["record", "decision log", "model", "tiny model", "recorded run", "decision log that is read"],
)
def test_what_is_in_a_folder_that_may_not_be_entered_is_told_in_a_sentence(
    closed: Path, asks: Callable[[Path], None], sentence: str
) -> None:
    path = closed / "inner"
    with pytest.raises(UsageError, match=sentence.format(path, path, folder=closed)):
        asks(path)


def test_model_in_a_folder_that_may_not_be_entered_needs_no_memory_that_is_known(closed: Path) -> None:
    assert needed_bytes(1, str(closed / "inner")) == needed_bytes(1, None)
