"""What `benchmarks/placement.py` compares with, and what it concludes; runs of a few requests."""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import placement
import pytest
from _placement.judged import Table
from _placement.loads import UNIT_TOKENS, grouped_queries, hits_of_one_cache
from _placement.oracle import looking_into_caches
from _placement.runs import BEFORE, BLIND, OURS, ROUND_ROBIN, Result, Run, first_tokens

from llumnix.control.prefix_table import PrefixTable
from llumnix.sim.driver import simulate
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.setup import RunSetup


def prompt(index: int, at_s: float, *hashes: int, output: int = 20) -> SimRequest:
    return SimRequest(index, at_s, UNIT_TOKENS * len(hashes) + 40, output, hashes=hashes)


@pytest.mark.parametrize("is_oracle", [True, False])
def test_oracle_sends_the_next_turn_to_its_prefix_though_nobody_told_of_that(
    is_oracle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PrefixTable, "news", lambda self: None)
    first, other, again = prompt(0, 0.0, *range(9)), prompt(1, 9.0, 50, output=900), prompt(2, 10.0, *range(10))
    setup = RunSetup(instances=3, profile=grouped_queries(9000), unit_tokens=UNIT_TOKENS)
    with looking_into_caches() if is_oracle else nullcontext():
        simulate([first, other, again], setup)
    assert (again.hit_tokens == 9 * UNIT_TOKENS) == is_oracle


def test_one_cache_for_all_has_what_came_before_until_it_is_full() -> None:
    load = [prompt(0, 0.0, 1, 2), prompt(1, 1.0, 1, 2, 3), prompt(2, 2.0, 7, 8), prompt(3, 3.0, 1, 2, 3)]
    assert hits_of_one_cache(load) == [0, 2 * UNIT_TOKENS, 0, 3 * UNIT_TOKENS]
    assert hits_of_one_cache(load, 4) == [0, 2 * UNIT_TOKENS, 0, 2 * UNIT_TOKENS], "the end of a prompt goes first"
    assert hits_of_one_cache(load, 2) == [0, 2 * UNIT_TOKENS, 0, 0]


def test_best_of_the_blind_is_another_one_by_each_measure() -> None:
    seen = {OURS: (1.0, 2.0), BLIND: (2.0, 8.0), BEFORE: (4.0, 4.0), ROUND_ROBIN: (8.0, 8.0)}
    table = Table(
        [
            Result(Run("contexts", 9.0, seed, policy, 100), {"mean": mean * (1 + seed), "P90": p90})
            for policy, (mean, p90) in seen.items()
            for seed in range(2)
        ]
    )
    assert table.over_best("contexts", 9.0, (BLIND, BEFORE, ROUND_ROBIN), "mean") == pytest.approx(0.5)
    assert table.over_best("contexts", 9.0, (BLIND, BEFORE, ROUND_ROBIN), "P90") == pytest.approx(0.5)


def test_first_tokens_that_take_longer_and_longer_are_growth() -> None:
    load = [prompt(k, float(k), 1) for k in range(4)]
    for request, took_s in zip(load, (1.0, 1.0, 2.0, 4.0), strict=True):
        request.first_token_s = request.arrival_s + took_s
    assert first_tokens(load)["growth"] == pytest.approx(3.0)


def test_capacity_is_the_last_rate_at_which_first_tokens_do_not_grow_under_one_of_the_rules() -> None:
    asked = argparse.Namespace(requests=10, warm_up=10, seeds=2)
    can = {BLIND: 9.0, BEFORE: 10.0, ROUND_ROBIN: 8.5}

    def measured(runs: list[Run]) -> list[Result]:
        return [Result(run, {"growth": 1.0 if run.rate < can[run.policy] else 3.0}) for run in runs]

    assert 10.0 / 1.02 <= placement.capacity("contexts", asked, measured) < 10.0
