"""Which part of a recorded run is simulated."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from llumnix.errors import UsageError
from llumnix.record.read import RecordedRun
from llumnix.report.records import InstanceRecord
from llumnix.types import InstanceState
from llumnix.whatif.stretch import Stretch, longest_stretch
from recorded_run import about, ended, instance


def run_of(instances: list[InstanceRecord], arrivals: dict[float, int] | None = None) -> RecordedRun:
    """A request a second, of 3 tokens or as many as `arrivals` says."""
    tokens = dict.fromkeys(map(float, range(100)), 3) | (arrivals or {})
    requests = [ended(f"r{at_s}", at_s, output_tokens=count).record for at_s, count in tokens.items()]
    return RecordedRun(
        folder=Path("run"), about=about(), requests=sorted(requests, key=lambda each: each.arrival_s), moves=[],
        instances=instances, steps=[],
    )  # fmt: skip


def serving(begin_s: int, end_s: int, *names: str) -> list[InstanceRecord]:
    return [instance(float(at_s), name) for at_s in range(begin_s, end_s) for name in names]


def span(stretch: Stretch) -> tuple[float, float, tuple[str, ...]]:
    return stretch.begin_s, stretch.end_s, stretch.instances


def test_the_longest_time_with_the_same_instances_is_taken() -> None:
    rows = [
        *serving(0, 20, "i0", "i1"),
        *[instance(20.0, "i0"), instance(20.0, "i1", InstanceState.LOST), instance(20.0, "i2", InstanceState.STARTING)],
        *serving(21, 30, "i0"),
        *serving(30, 100, "i0", "i2"),
    ]
    stretch = longest_stretch(run_of(rows, {40.0: 0}))
    assert span(stretch) == (30.0, 99.0, ("i0", "i2"))
    assert [request.arrival_s for request in stretch.requests] == [*range(30, 40), *range(41, 100)]
    assert (stretch.silent, stretch.failed) == (1, 0)
    first = stretch.workload().requests[0]
    assert (first.arrival_s, first.output_tokens, first.prompt_tokens) == (0.0, 3, 8)


def test_requests_of_one_id_are_told_apart() -> None:
    """A client that tries again gives the same, and a recorded run hides it alike."""
    run = run_of(serving(0, 100, "i0"))
    run.requests[:] = [msgspec.structs.replace(request, id="same") for request in run.requests]
    stretch = longest_stretch(run)
    names = [request.id for request in stretch.requests]
    assert len(set(names)) == len(stretch.requests)
    assert [request.id for request in stretch.workload().requests] == names


def test_what_arrived_before_the_run_began_is_left_out() -> None:
    stretch = longest_stretch(run_of(serving(0, 100, "i0"), {-5.0: 3}))
    assert stretch.requests[0].arrival_s == 0.0


def test_of_more_requests_than_are_wanted_the_last_are_taken() -> None:
    run = run_of(serving(0, 100, "i0"), {70.0: 0})
    stretch = longest_stretch(run, 60)
    assert span(stretch) == (40.0, 99.0, ("i0",))
    assert (len(stretch.requests), stretch.silent, stretch.left_out) == (59, 1, 40)
    assert stretch.workload().requests[0].arrival_s == 0.0
    whole = longest_stretch(run, 100)
    assert (len(whole.requests), whole.left_out) == (99, 0)


@pytest.mark.parametrize("rows", [[], serving(0, 40, "i0"), serving(0, 100)])
def test_too_little_is_refused_in_a_sentence(rows: list[InstanceRecord]) -> None:
    with pytest.raises(UsageError, match=r"run has \d+ requests that made tokens .* 50 are the fewest"):
        longest_stretch(run_of(rows))


def test_an_instance_that_starts_or_drains_meanwhile_does_not_serve() -> None:
    rows = serving(0, 100, "i0")
    for begin_s, state in ((20, InstanceState.STARTING), (60, InstanceState.DRAINING)):
        rows += [instance(float(at_s), "i1", state) for at_s in range(begin_s, begin_s + 20)]
    stretch = longest_stretch(run_of(sorted(rows, key=lambda row: row.at_s)))
    assert span(stretch) == (0.0, 99.0, ("i0",))


def test_a_front_end_that_is_restarted_and_knows_nobody_at_first_cuts_nothing() -> None:
    """It looks as soon as one instance has answered; of another it has heard, of a third not even that."""
    known_again = [instance(50.0, "i0"), instance(50.0, "i1", InstanceState.STARTING)]
    rows = [*serving(0, 40, "i0", "i1", "i2"), *known_again, *serving(51, 100, "i0", "i1", "i2")]
    assert span(longest_stretch(run_of(rows))) == (0.0, 99.0, ("i0", "i1", "i2"))


@pytest.mark.parametrize("state", [InstanceState.DRAINING, InstanceState.LOST, None])
def test_an_instance_that_stopped_serving_did_not_serve_meanwhile(state: InstanceState | None) -> None:
    """It drained for a while, or was lost and, with another front end or none, not told of."""
    gone = [] if state is None else [instance(float(at_s), "i1", state) for at_s in range(30, 35)]
    again = serving(35, 100, "i0", "i1") if state is InstanceState.DRAINING else serving(35, 100, "i0")
    rows = [*serving(0, 30, "i0", "i1"), *serving(30, 35, "i0"), *gone, *again]
    stretch = longest_stretch(run_of(sorted(rows, key=lambda row: row.at_s)))
    assert stretch.begin_s == (35.0 if state is InstanceState.DRAINING else 30.0)
