"""The thread that waits until the server answers."""

from __future__ import annotations

import threading

import pytest

from llumnix.cluster.health import HealthWatch, ServerAddress

pytestmark = pytest.mark.io

WAIT_S = 10.0


def test_answer_that_comes_when_the_launcher_is_ending_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would be told to is closed by then."""
    asked, answer = threading.Event(), threading.Event()

    def healthy(_: ServerAddress) -> bool:
        asked.set()
        return answer.wait(WAIT_S)

    monkeypatch.setattr(ServerAddress, "healthy", healthy)
    told: list[str] = []
    watch = HealthWatch(ServerAddress("127.0.0.1", 1), lambda: told.append("it answers"))
    watch.start()
    assert asked.wait(WAIT_S)
    watch.stop()
    answer.set()
    watch._thread.join(WAIT_S)
    assert told == []
