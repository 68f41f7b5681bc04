"""The thread that writes beside the work."""

from __future__ import annotations

import threading
from time import monotonic

import pytest

from llumnix.background import BackgroundWriter

pytestmark = pytest.mark.io


def test_closing_waits_once_for_a_disk_that_hangs() -> None:
    hangs, writes = threading.Event(), threading.Event()

    def write(_: list[int]) -> None:
        writes.set()
        hangs.wait()

    writer = BackgroundWriter("slow disk", write, 1)
    writer.put(1)
    assert writes.wait(10.0)
    writer.put(2)
    began_s = monotonic()
    writer.close(5.0)
    assert 5.0 <= monotonic() - began_s < 9.5
    hangs.set()
