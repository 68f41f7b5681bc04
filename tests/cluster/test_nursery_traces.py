"""What a process of the nursery's leaves behind when it is killed."""

from __future__ import annotations

from pathlib import Path

from llumnix.cluster.nursery import Nursery
from llumnix.wire.addresses import on_one_machine


def test_gauges_of_a_dead_front_end_are_not_added_to_those_of_the_living(tmp_path: Path) -> None:
    nursery = Nursery.__new__(Nursery)
    nursery._book = on_one_machine(tmp_path, 2)
    for name in ("gauge_livesum_7.db", "gauge_livesum_77.db", "counter_7.db", "gauge_mostrecent_7.db"):
        (tmp_path / name).touch()
    nursery._remove_traces("front-0", 7)
    assert {path.name for path in tmp_path.iterdir()} == {
        "gauge_livesum_77.db",
        "counter_7.db",
        "gauge_mostrecent_7.db",
    }
