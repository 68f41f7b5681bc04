"""The thread that writes beside the work."""

from __future__ import annotations

import threading
from time import monotonic, sleep

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


def test_what_is_lost_is_told_once_and_again_when_it_is_more_than_twice_as_much(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def write(_: list[int]) -> None:
        raise OSError("no space left")

    writer = BackgroundWriter("records", write, 1)
    for number in range(7):
        while not writer._waiting.empty():
            sleep(0.001)
        writer.put(number)
    writer.close()
    told = [message for message in caplog.messages if "not written so far" in message]
    assert [int(message.split()[8]) for message in told] == [1, 3, 7]
