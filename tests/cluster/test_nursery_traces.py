"""Children of the nursery that were killed, or never came to be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llumnix.cluster.nursery import Nursery
from llumnix.cluster.nursery_messages import Exited, ForkFrontEnd, channel, receive_from_nursery
from llumnix.cluster.traces import remove_gauges


def test_gauges_of_a_dead_front_end_are_not_added_to_those_of_the_living(tmp_path: Path) -> None:
    for name in ("gauge_livesum_7.db", "gauge_livesum_77.db", "counter_7.db", "gauge_mostrecent_7.db"):
        (tmp_path / name).touch()
    remove_gauges(str(tmp_path), 7)
    assert {path.name for path in tmp_path.iterdir()} == {
        "gauge_livesum_77.db",
        "counter_7.db",
        "gauge_mostrecent_7.db",
    }


def test_child_that_cannot_be_forked_has_ended_and_the_others_live_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", full)
    nursery = Nursery.__new__(Nursery)
    nursery._pids = {}
    launcher, nursery._channel = channel()
    with launcher, nursery._channel:
        nursery._obey(ForkFrontEnd(index=0))
        news = receive_from_nursery(launcher)
    assert news == Exited(child="front-0", how="it cannot be forked: resource temporarily unavailable")
    assert nursery._pids == {}
