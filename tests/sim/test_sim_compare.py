"""Predicted beside measured, when the server measured had served before."""

from __future__ import annotations

from llumnix.report.records import InstanceRecord, Records, RequestRecord
from llumnix.sim.compare import Comparison, compare
from llumnix.types import InstanceState


def live(preemptions_before: int, preemptions_after: int) -> Records:
    """A server counts preemptions since it started, not per request."""
    request = RequestRecord(id="r", arrival_s=0.0, prompt_tokens=1, output_tokens=2, ttft_s=0.1, latency_s=0.2)
    return Records([request], [], [_seen(0.0, preemptions_before), _seen(1.0, preemptions_after)])


def simulated(preemptions: int) -> Records:
    return Records(
        [
            RequestRecord(
                id="r",
                arrival_s=0.0,
                prompt_tokens=1,
                output_tokens=2,
                ttft_s=0.1,
                latency_s=0.1,
                preemptions=preemptions,
                migrations=0,
            )
        ]
    )


def _seen(at_s: float, preemptions: int) -> InstanceRecord:
    return InstanceRecord(
        at_s=at_s,
        instance="i0",
        state=InstanceState.RUNNING,
        running=1,
        waiting=0,
        free_blocks=1,
        total_blocks=2,
        freeness=1.0,
        preemptions=preemptions,
    )


def rows(measured: Records, predicted: Records) -> dict[str, Comparison]:
    return {row.name: row for row in compare(measured, predicted)}


def test_preemptions_of_earlier_runs_do_not_count() -> None:
    found = rows(live(14, 37), simulated(23))["preemptions"]
    assert (found.measured, found.predicted, found.error) == (23, 23, 0)


def test_error_is_relative_to_what_was_measured() -> None:
    assert rows(live(0, 0), simulated(0))["latency P50"].error == -0.5


def test_what_was_measured_as_nothing_has_no_relative_error() -> None:
    assert rows(live(5, 5), simulated(1))["preemptions"].error is None
