"""What `benchmarks/admission.py` concludes of those that were refused; nothing is simulated here."""

from __future__ import annotations

import admission
import pytest


@pytest.mark.parametrize(
    ("wrongly", "measured", "missed"),
    [
        ([0.01, 0.02], [1.5, 3.0], [False, False]),
        ([0.04, 0.04], [4.0, 8.0], [False, True]),
        ([0.0, 0.0], [0.0, 0.0], [False, False]),
        ([0.01, None], [None, None], [True, True]),
    ],
)
def test_a_seed_of_which_nobody_was_judged_is_no_goal_reached(
    wrongly: list[float | None], measured: list[float | None], missed: list[bool]
) -> None:
    figures = admission._wrongly_refused(admission.Point(declined=[0.4, 0.6], wrongly=wrongly))
    assert [figure.measured for figure in figures] == pytest.approx(measured)
    assert [figure.missed for figure in figures] == missed


def test_sample_of_nobody_says_nothing_and_where_nobody_was_declined_nobody_was_wrongly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = admission.requests_at(1.0, 0, 3, [1.0])
    monkeypatch.setattr(admission, "run", lambda again, classes: again)
    classes = admission.classes_of(1)
    assert admission.wrongly_refused(requests, requests, classes) is None
    assert admission.wrongly_refused([], requests, classes) == 0.0
