"""What the live page remembers: an hour, in the same memory however long a server runs."""

from __future__ import annotations

from itertools import pairwise

import pytest

pytest.importorskip("vllm")

from llumnix.engine.vllm.front_end.page.history import COARSE, FINE, FINE_PER_COARSE, History, Track
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, InstanceState

I0, I1 = InstanceId("i0"), InstanceId("i1")


def load(instance: InstanceId, free: int, **facts: object) -> InstanceSnapshot:
    return InstanceSnapshot(id=instance, at=0.0, seq=1, total_blocks=100, free_blocks=free, **facts)  # type: ignore[arg-type]


def column(track: Track) -> list[float]:
    return [float(value) for value in track.rows()[:, 0]]


@pytest.mark.parametrize("count", [0, 1, 9, FINE - 1, FINE])
def test_recent_past_is_there_second_by_second(count: int) -> None:
    track = Track(1)
    for number in range(count):
        track.add([number])
    assert column(track) == list(range(count))


@pytest.mark.parametrize("count", [FINE + 1, FINE + 10, FINE + 505, FINE + FINE_PER_COARSE * COARSE + 7, 50_000])
def test_older_past_is_there_as_means_and_nothing_twice(count: int) -> None:
    track = Track(1)
    for number in range(count):
        track.add([number])
    values = column(track)
    assert values[-FINE:] == list(range(count - FINE, count))
    older = values[:-FINE]
    assert all(later - earlier == FINE_PER_COARSE for earlier, later in pairwise(older))
    assert all(value % FINE_PER_COARSE == 4.5 for value in older), "each stands for ten whole seconds"
    if older:
        assert FINE_PER_COARSE / 2 <= values[-FINE] - older[-1] < 2 * FINE_PER_COARSE
    assert len(values) <= FINE + COARSE


def test_instance_that_came_later_has_the_same_times_and_no_numbers_before() -> None:
    history = History()
    for second in range(700):
        loads = {I0: load(I0, 50)} if second < 650 else {I0: load(I0, 50), I1: load(I1, 10)}
        history.sample(1000.0 + second, float(second), loads)
    cluster, late = history.of_cluster(), history.of(I1)
    assert late is not None
    assert late.at == cluster.at
    memory = late.series["memory"]
    assert len(memory) == len(late.at)
    assert memory[-50:] == [0.9] * 50
    assert set(memory[:-50]) == {None}


def test_instance_that_is_gone_is_forgotten() -> None:
    history = History()
    history.sample(1.0, 1.0, {I0: load(I0, 50), I1: load(I1, 50)})
    history.sample(2.0, 2.0, {I1: load(I1, 50)})
    assert history.of(I0) is None
    assert history.of(I1) is not None


def test_cluster_in_one_number_each() -> None:
    history = History()
    draining = {"state": InstanceState.DRAINING}
    first = {I0: load(I0, 80, ended=10), I1: load(I1, 0, running=4, waiting=2, **draining)}
    assert history.sample(10.0, 10.0, first).requests_per_s == 0.0, "nothing to compare with"
    second = {I0: load(I0, 60, ended=16, migrations_in=2, running=4), I1: load(I1, 0, running=4, waiting=2, **draining)}
    sample = history.sample(12.0, 12.0, second)
    assert (sample.requests_per_s, sample.moves_per_s) == (3.0, 1.0)
    assert (sample.memory, sample.memory_least, sample.memory_most) == (0.7, 0.4, 1.0)
    assert (sample.instances, sample.running, sample.waiting) == (2, 8, 2)
    assert sample.freeness == 15.0, "of those that take requests"


def test_a_clock_that_is_set_changes_no_rate_and_the_past_is_told_by_the_clock_as_it_is_now() -> None:
    """Back by an hour, and forward by a day."""
    history, ended = History(), 0
    for second, at in enumerate((9000.0, 9001.0, 5402.0, 5403.0, 91804.0)):
        ended += 5
        sample = history.sample(at, float(second), {I0: load(I0, 50, ended=ended)})
        assert (sample.at, sample.requests_per_s) == (at, 5.0 if second else 0.0)
        instance = history.of(I0)
        assert instance is not None
        assert instance.at == history.of_cluster().at == [at - second + each for each in range(second + 1)]


def test_cluster_without_an_instance_has_no_numbers() -> None:
    sample = History().sample(1.0, 1.0, {})
    assert (sample.instances, sample.memory, sample.freeness, sample.requests_per_s) == (0, None, None, 0.0)
