from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from llumnix.control.orders import MoveCause
from llumnix.report.figures import draw, draw_latency, draw_migrations
from llumnix.report.records import InstanceRecord, MigrationRecord, Records, RequestRecord
from llumnix.report.summary import summarize
from llumnix.report.timeline import MOST_MOMENTS, draw_timeline
from llumnix.types import HIGH, NORMAL, InstanceState


def request(number: int, *, error: str = "") -> RequestRecord:
    return RequestRecord(
        id=f"r{number}",
        arrival_s=number / 2,
        prompt_tokens=10,
        output_tokens=5,
        priority=HIGH if number % 3 == 0 else NORMAL,
        ttft_s=0.01 * (1 + number),
        tpot_s=0.02,
        latency_s=None if error else 0.5 + number,
        largest_gap_s=0.0,
        error=error,
    )


def load(
    at_s: float, instance: str, state: InstanceState = InstanceState.RUNNING, *, preemptions: int = 0
) -> InstanceRecord:
    freeness = -math.inf if state == InstanceState.DRAINING else at_s
    return InstanceRecord(
        at_s=at_s, instance=instance, state=state, running=2, waiting=1,
        free_blocks=40, total_blocks=100, freeness=freeness, preemptions=preemptions,
    )  # fmt: skip


def move(at_s: float, outcome: str = "moved") -> MigrationRecord:
    return MigrationRecord(
        at_s=at_s, request_id="r", source="a", target="b", cause=MoveCause.BALANCE, outcome=outcome,
        downtime_ms=5.0 if outcome == "moved" else None,
    )  # fmt: skip


WHOLE = Records(
    [request(i) for i in range(30)] + [request(99, error="HTTP 503")],
    [move(1.0), move(2.0, "refused"), move(3.0)],
    [
        *(load(float(t), "a", preemptions=t // 3) for t in range(10)),
        *(load(float(t), "b", InstanceState.DRAINING) for t in range(2, 6)),
        load(6.0, "b", InstanceState.STOPPED),
    ],
)


def test_every_picture_of_a_whole_run_is_drawn_the_same_each_time(tmp_path: Path) -> None:
    first, second = draw(WHOLE, tmp_path / "new" / "1", title="a run"), draw(WHOLE, tmp_path / "2", title="a run")
    assert [path.name for path in first] == ["latency.png", "timeline.png", "migrations.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in first)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_pictures_without_data_are_not_drawn(tmp_path: Path) -> None:
    assert draw(Records([]), tmp_path) == []
    assert draw(Records([request(1, error="HTTP 503")], [], [load(0.0, "a")]), tmp_path) == []
    assert [p.name for p in draw(Records([request(1)]), tmp_path)] == ["latency.png"]


def test_latency_shows_one_curve_per_priority_and_leaves_failures_out() -> None:
    panel = draw_latency(WHOLE).axes[0]
    curves = {line.get_label().split()[0]: line for line in panel.get_lines() if "P50" in line.get_label()}  # type: ignore[attr-defined, operator]
    assert list(curves) == ["normal", "high"]
    drawn = max(max(line.get_xdata()) for line in panel.get_lines() if len(line.get_xdata()))  # type: ignore[arg-type, type-var]
    assert drawn == 29.5


def test_counts_over_time_are_the_sums_of_the_instances() -> None:
    counts, load_panel, *_ = draw_timeline(WHOLE).axes
    serving = counts.get_lines()[0]
    assert serving.get_ydata().tolist() == [1.0] * 10  # type: ignore[union-attr]
    running = load_panel.get_lines()[0]
    assert running.get_ydata().tolist() == [2, 2, 4, 4, 4, 4, 2, 2, 2, 2]  # type: ignore[union-attr]


def test_preemptions_of_an_instance_that_is_gone_stay_counted() -> None:
    """Its last row has no counters any more. Those of one that came later began in the run. So says the summary."""
    rows = [
        load(0.0, "a", preemptions=7),
        load(1.0, "a", preemptions=9),
        load(2.0, "a", InstanceState.LOST),
        load(0.0, "b"),
        load(3.0, "b"),
        load(3.0, "c", preemptions=4),
    ]
    records = Records([], [], rows)
    preemptions = draw_timeline(records).axes[4]
    assert preemptions.get_lines()[0].get_ydata().tolist() == [0, 2, 2, 6]  # type: ignore[union-attr]
    assert summarize(records).preemptions == 6


def test_instances_that_were_gone_before_the_run_have_no_row() -> None:
    """Live servers tell of the last hundred."""
    gone = [load(float(at), f"i{number}", InstanceState.STOPPED) for at in range(3) for number in range(100)]
    records = Records([], [move(1.0)], [load(float(at), "a") for at in range(3)] + gone)
    for figure in (draw_timeline(records), draw_migrations(records)):
        rows = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
        assert not [row for row in rows if row.startswith("i")]


def test_long_run_of_many_instances_is_thinned_out() -> None:
    rows = [load(t / 10, f"i{n:03d}") for t in range(2 * MOST_MOMENTS) for n in range(3)]
    figure = draw_timeline(Records([], [], rows))
    assert len(figure.axes[0].get_lines()[0].get_xdata()) == MOST_MOMENTS  # type: ignore[arg-type]


def test_migrations_between_instances_without_a_series_are_drawn() -> None:
    figure = draw_migrations(Records([], [move(1.0, "refused")]))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_migrations_are_told_apart_by_the_rule_that_asked_for_them() -> None:
    causes = [*[MoveCause.BALANCE] * 40, *[MoveCause.DRAIN] * 3, MoveCause.BY_HAND, None]
    moves = [msgspec.structs.replace(move(float(n), "moved"), cause=cause) for n, cause in enumerate(causes)]
    labels = [text.get_text() for text in draw_migrations(Records([], moves)).axes[0].get_legend().get_texts()]  # type: ignore[union-attr]
    assert labels == ["balance (40)", "by hand (1)", "drain (3)", "moved (1)"]


@pytest.mark.parametrize("state", list(InstanceState))
def test_a_single_instance_in_any_state_can_be_drawn(state: InstanceState) -> None:
    draw_timeline(Records([], [], [load(0.0, "a", state), load(1.0, "a", state)])).draw_without_rendering()
