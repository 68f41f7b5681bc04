"""Errors of given-up requests say why."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from vllm.exceptions import GenerationError

from llumnix.engine.vllm.front_end.failures import Failures, tell_why


class Serving:
    def _raise_if_error(self, finish_reason: str | None, request_id: str) -> None:
        if finish_reason == "error":
            raise GenerationError("Internal server error")


@pytest.fixture
def failures() -> Failures:
    return Failures()


@pytest.fixture
def serving(failures: Failures) -> Serving:
    state = SimpleNamespace(openai_serving_chat=Serving())
    tell_why(state, failures)
    return state.openai_serving_chat  # type: ignore[no-any-return]


def test_reason_is_told_once(failures: Failures, serving: Serving) -> None:
    failures.remember("cmpl-1", "i0 was lost")
    with pytest.raises(GenerationError, match=r"The request was given up: i0 was lost\."):
        serving._raise_if_error("error", "cmpl-1")
    with pytest.raises(GenerationError, match="Internal server error"):
        serving._raise_if_error("error", "cmpl-1")


def test_request_that_ended_well_keeps_its_peace(failures: Failures, serving: Serving) -> None:
    failures.remember("cmpl-1", "i0 was lost")
    serving._raise_if_error("stop", "cmpl-1")
    assert failures.take("cmpl-1") == "i0 was lost"


def test_reasons_of_clients_that_went_away_do_not_pile_up(failures: Failures) -> None:
    for number in range(10_005):
        failures.remember(str(number), "lost")
    assert failures.take("0") is None
    assert failures.take("10004") == "lost"
