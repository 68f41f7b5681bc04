"""Whether a process may hold the sockets of so many instances."""

from __future__ import annotations

import resource

import pytest

from llumnix.cluster.preflight import check_files
from llumnix.errors import UsageError
from llumnix.flags import parse_serve


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
