"""Files: whether a process may hold so many, and whether what is asked for can be written."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from llumnix.cluster.preflight import check, check_files
from llumnix.errors import UsageError
from llumnix.flags import parse_serve
from llumnix.recording import RECORD


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
