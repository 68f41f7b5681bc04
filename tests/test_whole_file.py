"""Small files that are replaced as a whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from full_disk import full_beyond
from llumnix.whole_file import write_whole

pytestmark = pytest.mark.io


def test_a_full_disk_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "about.json"
    write_whole(path, b"before")
    with full_beyond(10), pytest.raises(OSError, match="File too large"):
        write_whole(path, b"x" * 100)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
