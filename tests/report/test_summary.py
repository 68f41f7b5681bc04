from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from llumnix.report.records import InstanceRecord, MigrationRecord, Records, RequestRecord
from llumnix.report.summary import (
    Distribution,
    Summary,
    mean_instances,
    print_summary,
    summarize,
    write_summary,
)
from llumnix.types import HIGH, NORMAL, InstanceState, Priority


def request(
    id: str, arrival_s: float = 0.0, *, latency_s: float | None = 1.0, priority: Priority = NORMAL, error: str = ""
) -> RequestRecord:
    return RequestRecord(
        id=id,
        arrival_s=arrival_s,
        prompt_tokens=100,
        output_tokens=10,
        priority=priority,
        ttft_s=0.1,
        tpot_s=0.01,
        latency_s=latency_s,
        largest_gap_s=0.02,
        error=error,
    )


def load(
    at_s: float,
    instance: str,
    state: InstanceState = InstanceState.RUNNING,
    preemptions: int = 0,
    avoided: int = 0,
) -> InstanceRecord:
    return InstanceRecord(
        at_s=at_s, instance=instance, state=state, running=1, waiting=0,
        free_blocks=5, total_blocks=10, freeness=5.0, preemptions=preemptions,
        preemptions_avoided=avoided, recompute_tokens_saved=100 * avoided,
    )  # fmt: skip


def moved(outcome: str, downtime_ms: float | None = None) -> MigrationRecord:
    return MigrationRecord(at_s=1, request_id="r", source="a", target="b", outcome=outcome, downtime_ms=downtime_ms)


def test_percentiles_interpolate_between_values() -> None:
    assert Distribution.of([1.0, None, 2.0, 3.0, 4.0]) == Distribution(count=4, mean=2.5, p50=2.5, p99=3.97, max=4.0)
    assert Distribution.of([None]) is None


def test_throughput_counts_finished_requests_from_first_arrival_to_last_end() -> None:
    summary = summarize(Records([request("a", 10.0), request("b", 12.0, latency_s=3.0), request("c", 11, error="x")]))
    assert summary.duration_s == 5.0
    assert summary.requests_per_s == 0.4
    assert summary.output_tokens_per_s == 4.0
    assert summary.total_tokens_per_s == 44.0


def test_failed_requests_are_counted_by_kind_and_left_out_of_latencies() -> None:
    failed = [request(str(i), error="HTTP 503", latency_s=None) for i in range(2)]
    slow = request("slow", error="no answer in time", latency_s=99.0)
    summary = summarize(Records([request("a"), *failed, slow]))
    assert summary.errors == {"HTTP 503": 2, "no answer in time": 1}
    assert (summary.requests.requests, summary.requests.failed) == (4, 3)
    assert summary.requests.latency_s == Distribution(1, 1.0, 1.0, 1.0, 1.0)


def test_priority_classes_are_apart_where_there_are_two() -> None:
    both = summarize(Records([request("a", latency_s=1.0, priority=HIGH), request("b", latency_s=3.0)]))
    assert list(both.by_priority) == ["high", "normal"]
    assert [group.latency_s.mean for group in both.by_priority.values() if group.latency_s] == [1.0, 3.0]
    assert summarize(Records([request("a")])).by_priority == {}


def test_downtime_is_of_completed_moves_only() -> None:
    summary = summarize(Records([], [moved("moved", 4.0), moved("refused", 900.0), moved("moved", 6.0)]))
    assert summary.migrations == {"moved": 2, "refused": 1}
    assert summary.downtime_ms is not None
    assert summary.downtime_ms.mean == 5.0


def test_preemptions_come_from_requests_or_else_from_what_the_instances_counters_grew_by() -> None:
    rows = [load(0, "a", preemptions=5), load(0, "b", preemptions=0), load(9, "a", preemptions=7), load(9, "b")]
    assert summarize(Records([request("r")], instances=rows)).preemptions == 2
    assert summarize(Records([request("r")])).preemptions is None


def test_counters_of_instances_that_come_and_go() -> None:
    rows = [
        *(load(0, "a", preemptions=5, avoided=1), load(9, "a", preemptions=7, avoided=1)),
        *(load(3, "new", preemptions=2, avoided=2), load(6, "new", preemptions=4, avoided=3)),
        load(9, "new", InstanceState.STOPPED),  # the server has forgotten its counters
    ]
    summary = summarize(Records([request("r")], instances=rows))
    assert (summary.preemptions, summary.preemptions_avoided, summary.recompute_tokens_saved) == (6, 3, 300)
    assert summarize(Records([request("r")])).preemptions_avoided is None


def test_mean_instances_weighs_by_time_and_counts_every_state_that_holds_a_machine() -> None:
    rows = [
        load(0, "a"),
        load(10, "a"),
        load(4, "b", InstanceState.STARTING),
        load(8, "b", InstanceState.STOPPED),
        load(10, "b", InstanceState.STOPPED),
    ]
    assert mean_instances(rows) == pytest.approx(1.4)


def test_instance_that_vanishes_from_the_series_counts_until_the_next_moment() -> None:
    rows = [load(t, "a") for t in range(11)] + [load(t, "b") for t in range(3)]
    assert mean_instances(rows) == pytest.approx(1.3)
    assert mean_instances(rows[:1]) is None


def test_no_records_at_all_make_a_summary_without_numbers() -> None:
    summary = summarize(Records([]))
    assert summary.requests.latency_s is None
    assert summary.requests_per_s == 0


def test_summary_survives_the_file_and_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    records = Records([request("a"), request("b", 1 / 3, priority=HIGH)], [moved("moved", 1 / 7)], [load(0, "a")])
    summary = summarize(records, {"policy": "llumnix", "seed": 3, "rate": 0.5})
    write_summary(tmp_path / "one.json", summary)
    write_summary(tmp_path / "two.json", summarize(records, {"policy": "llumnix", "seed": 3, "rate": 0.5}))
    assert msgspec.json.decode((tmp_path / "one.json").read_bytes(), type=Summary) == summary
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_printed_summary_tells_numbers_failures_and_migrations() -> None:
    records = Records(
        [request("a"), request("b", error="odd [red] answer")], [moved("moved", 4.0)], [load(0, "a"), load(1, "a")]
    )
    out = io.StringIO()
    print_summary(summarize(records, {"workload": "S-S"}), Console(file=out, width=100))
    text = out.getvalue()
    for part in ("workload S-S", "TTFT", "10.00 ms", "1 of 2 requests finished", "1 × odd [red] answer", "1 moved"):
        assert part in text
