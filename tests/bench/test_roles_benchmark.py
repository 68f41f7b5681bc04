"""What `benchmarks/roles.py` concludes; nothing is simulated here."""

from __future__ import annotations

import pytest
import roles

TIGHT, SHIFTS = roles.CELLS[0], roles.CELLS[3]


def judged(cell: roles.Cell, **found: float) -> dict[str, tuple[float | None, bool]]:
    figures = roles.verdict(cell, {name.replace("_", " "): rate for name, rate in found.items()})
    return {figure.name.rpartition(": ")[2]: (figure.measured, figure.missed) for figure in figures}


def test_adaptive_roles_are_held_against_the_best_of_each_kind() -> None:
    rates = {"adaptive": 42.0, "mixed_2048": 30.0, "mixed_soft": 20.0, "4P_soft": 42.0}
    assert judged(TIGHT, **rates) == {
        "adaptive / best in hindsight": (1.0, False),
        "adaptive / best mixed": (1.4, False),
    }
    assert judged(SHIFTS, **rates)["adaptive / best fixed split"] == (1.0, True)


def test_whom_nobody_ran_is_no_goal_reached() -> None:
    """Of `--systems adaptive '4P soft'`, hours of which are not to be lost."""
    found = judged(TIGHT, **{"adaptive": 41.0, "4P_soft": 41.0})
    assert found == {"adaptive / best in hindsight": (1.0, False), "adaptive / best mixed": (None, True)}
    assert judged(SHIFTS, adaptive=20.0, mixed_2048=18.0)["adaptive / best fixed split"] == (None, True)
    assert judged(TIGHT, adaptive=41.0)["adaptive / best in hindsight"] == (None, True)


@pytest.mark.parametrize(
    ("served_up_to", "lowest", "highest"), [(10.0, 0.0, 0.0), (40.0, 40.0 / roles.STEP, 40.0), (99.0, 54.0, 54.0)]
)
def test_goodput_is_a_rate_that_was_served(
    served_up_to: float, lowest: float, highest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "in_time", lambda _, rate: float(rate <= served_up_to))
    _, rate = roles.goodput(roles.Task(TIGHT, roles.ADAPTIVE))
    assert lowest <= rate <= highest


def test_tasks_of_a_cell_share_seeds_and_length_and_differ_in_their_system() -> None:
    tasks = roles.tasks_of(TIGHT, seeds=3, measured_s=9.0, quick=True)
    assert [task.system for task in tasks] == [
        *("adaptive", "mixed 2048", "mixed soft", "3P", "3P soft", "4P", "4P soft", "5P", "5P soft"),
    ]
    assert {(task.cell, task.seeds, task.measured_s) for task in tasks} == {(TIGHT, 3, 9.0)}
    assert [(task.for_prompts, task.soft) for task in tasks[2:5]] == [(0, True), (3, False), (3, True)]
