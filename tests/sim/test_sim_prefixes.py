"""Whole runs in which prompts begin alike: where they go, and what if what was cached is not there any more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sim_cluster import assert_all_served

from llumnix.config import PolicyConfig
from llumnix.recording import RECORD, differences
from llumnix.sim.driver import simulate
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.faults import parse_fault
from llumnix.sim.instance import SimInstance
from llumnix.sim.outcome import Outcome
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import PlannedDrain, PlannedMove, RunSetup
from llumnix.workload.workload import load_workload

UNIT_TOKENS = 512
PROFILE = load_profile("a10-llama-7b").with_scheduler(kind="vllm-1")


def prompt(index: int, at_s: float, *hashes: int, output: int = 20) -> SimRequest:
    return SimRequest(index, at_s, UNIT_TOKENS * len(hashes) + 40, output, hashes=hashes)


def run(*requests: SimRequest, instances: int = 3, prefix: bool = True, blocks: int = 792, **setup: Any) -> None:
    profile = replace(PROFILE, memory=replace(PROFILE.memory, total_blocks=blocks))
    policy = PolicyConfig(prefix=prefix, migration=False)
    simulate(
        list(requests),
        RunSetup(instances=instances, profile=profile, policy=policy, unit_tokens=UNIT_TOKENS, **setup),
    )


def ttft_s(request: SimRequest) -> float:
    return request.first_token_s - request.arrival_s


@pytest.mark.parametrize("prefix", [True, False])
def test_next_turn_goes_where_the_one_before_it_was_though_others_are_freer(prefix: bool) -> None:
    turns = [prompt(k, 10.0 * k, *range(2 + k)) for k in range(4)]
    others = [prompt(10 + k, 10.0 * k + 4, 1000 + k, output=300) for k in range(3)]
    run(*turns, *others, prefix=prefix)
    assert (len({each.instances[0] for each in turns}) == 1) == prefix
    assert (ttft_s(turns[3]) < ttft_s(turns[0])) == prefix


def test_prefix_that_was_thrown_away_is_not_gone_after() -> None:
    """Sweeps tell the front end within a second or so; then the request goes where nobody is."""
    first = prompt(0, 0.0, 1, 2, 3)
    flood = [prompt(1 + k, 5.0 + 4 * k, 10 * k + 100, 10 * k + 101, 10 * k + 102) for k in range(12)]
    long = prompt(50, 60.0, *range(500, 509), output=500)
    again = prompt(60, 70.0, 1, 2, 3)
    run(first, *flood, long, again, instances=2, blocks=400)
    assert first.instances == long.instances != again.instances
    assert ttft_s(again) > 0.8 * ttft_s(first), "it was cached still: this shows nothing"


def test_prefixes_of_a_dead_instance_are_nobodys() -> None:
    first, again = prompt(0, 0.0, 1, 2, 3), prompt(1, 60.0, 1, 2, 3)
    third = prompt(2, 80.0, 1, 2, 3)
    run(first, again, third, instances=2, faults=(parse_fault("crash@20:0"),))
    assert first.instances == ["i0000"]
    assert again.instances != first.instances
    assert ttft_s(again) > 0.9 * ttft_s(first)
    assert third.instances == again.instances


def test_hot_prefix_is_soon_cached_on_several() -> None:
    hot = [prompt(k, 0.05 * k, 1, 2, 3, output=100) for k in range(60)]
    run(*hot)
    assert len({each.instances[0] for each in hot}) == 3


def test_run_with_prefixes_can_be_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RECORD, str(tmp_path))
    run(*(prompt(k, 0.3 * k, *range(k % 5, k % 5 + 3)) for k in range(100)), faults=(parse_fault("crash@10:1"),))
    assert not differences(tmp_path / "front-end.jsonl")


def test_instances_that_misjudge_their_steps_serve_all_the_same() -> None:
    def mean_s(error: float) -> float:
        load = load_workload("S-S?rate=7&requests=300&seed=1")
        requests = [
            SimRequest(k, row.arrival_s, row.prompt_tokens, row.output_tokens) for k, row in enumerate(load.requests)
        ]
        simulate(requests, RunSetup(instances=4, profile=PROFILE, step_cost_error=error))
        return sum(ttft_s(each) for each in requests) / len(requests)

    exact_s, wrong_s = mean_s(0.0), mean_s(0.3)
    assert exact_s != wrong_s
    assert wrong_s < 1.5 * exact_s


def run_with_move(*requests: SimRequest, at_s: float, prefix: bool, blocks: int = 792, **setup: Any) -> Outcome:
    """Of r2 from i0000 to i0001, by hand; nothing else moves."""
    return simulate(
        list(requests),
        RunSetup(
            instances=2,
            profile=replace(PROFILE, memory=replace(PROFILE.memory, total_blocks=blocks)),
            policy=PolicyConfig(prefix=prefix, migration=False),
            unit_tokens=UNIT_TOKENS,
            moves=(PlannedMove(at_s, "r2", 0, 1),),
            **setup,
        ),
    )


@pytest.mark.parametrize(("cached", "skipped_blocks"), [((1, 2, 3, 4), 128), ((1, 2, 9, 4), 64), ((7, 8, 9, 4), 0)])
def test_move_leaves_out_what_its_target_has_cached(
    cached: tuple[int, ...], skipped_blocks: int, instances: list[SimInstance]
) -> None:
    """The first two requests are placed by load, on an instance each, and leave their prompts there."""
    first, second, moving = (
        prompt(0, 0.0, 1, 2, 3, 4),
        prompt(1, 0.0, *cached),
        prompt(2, 20.0, 1, 2, 3, 4, output=300),
    )
    outcome = run_with_move(first, second, moving, at_s=24.0, prefix=False)
    assert (first.instances, second.instances) == (["i0000"], ["i0001"])
    (move,) = outcome.migrations
    assert (move.outcome, move.blocks_skipped) == ("moved", skipped_blocks)
    copied_blocks = move.bytes // PROFILE.memory.block_bytes
    assert 4 * 32 < copied_blocks + skipped_blocks < 4 * 32 + 20, "its prompt and some tokens"
    assert_all_served(outcome)
    assert [each.engine.pool.free for each in instances] == [792, 792]


def test_prompt_of_a_request_that_moved_is_cached_where_it_went_and_front_ends_know() -> None:
    moving, other, again = prompt(2, 0.0, 1, 2, 3, 4, output=300), prompt(3, 0.0, 7), prompt(4, 60.0, 1, 2, 3, 4, 5)
    run_with_move(moving, other, again, at_s=5.0, prefix=True, faults=(parse_fault("crash@30:0"),))
    assert moving.instances == ["i0000", "i0001"]
    assert (again.instances, again.expected_hit_tokens, again.hit_tokens) == (["i0001"], 2048, 2048)


def test_request_that_shares_its_prompt_may_end_while_that_is_read(instances: list[SimInstance]) -> None:
    """Its blocks are kept until they are read: those that another one uses are not free then, either."""
    stays, moving = prompt(1, 0.0, 1, 2, 3, 4, output=400), prompt(2, 5.0, 1, 2, 3, 4, output=100)
    slow = parse_fault("slow-link@5.5+60:40")
    outcome = run_with_move(stays, moving, at_s=6.0, prefix=True, blocks=200, place_on=0, faults=(slow,))
    assert [move.outcome for move in outcome.migrations] == ["stayed: finished"]
    assert_all_served(outcome)
    assert instances[0].engine.pool.free == 200


@pytest.mark.parametrize("prefix", [True, False])
def test_drained_request_goes_where_its_prompt_is_cached_though_another_is_a_little_freer(prefix: bool) -> None:
    """So many that begin alike come at once that two instances compute the beginning; later one of the two drains."""
    burst = [prompt(k, 0.0, 1, 2, 3, 4) for k in range(8)]
    long, other = prompt(20, 30.0, 1, 2, 3, 4, output=600), SimRequest(30, 31.0, 100, 600)
    outcome = simulate(
        [*burst, long, other],
        RunSetup(
            instances=4,
            profile=PROFILE,
            policy=PolicyConfig(prefix=prefix),
            unit_tokens=UNIT_TOKENS,
            drains=(PlannedDrain(40.0, 0),),
        ),
    )
    assert (long.instances[0], other.instances) == ("i0000", ["i0001"]), "else this shows nothing"
    assert long.instances[-1] == ("i0001" if prefix else "i0002")
    (move,) = outcome.migrations
    assert ("its prompt is cached there" in move.reason) == prefix


@pytest.mark.parametrize(("cached", "is_first"), [((1, 2, 3), True), ((7, 8, 9), False)])
def test_who_has_much_cached_starts_before_one_that_came_a_little_earlier(
    cached: tuple[int, ...], is_first: bool
) -> None:
    """Else it would be pushed out by then."""
    before, hog = prompt(0, 0.0, 1, 2, 3), prompt(1, 10.0, 20, 21, 22, output=400)
    earlier, later = prompt(2, 12.0, *range(30, 36)), prompt(3, 13.0, *cached, 40, 41, 42)
    run(before, hog, earlier, later, instances=1, blocks=250)
    assert min(earlier.first_token_s, later.first_token_s) > hog.finish_s, "both waited, or this shows nothing"
    assert (later.first_token_s < earlier.first_token_s) == is_first
    assert (later.hit_tokens > 0) == is_first


def test_queued_request_that_moves_expects_what_its_new_instance_has() -> None:
    before, hog = prompt(0, 0.0, 1, 2, 3, 4), prompt(1, 12.0, 20, 21, 22, 23, output=900)
    moving = prompt(2, 15.0, 1, 2, 3, 4)
    outcome = run_with_move(before, hog, moving, at_s=20.0, prefix=True, blocks=200, place_on=0)
    assert [move.outcome for move in outcome.migrations] == ["moved"]
    assert moving.instances == ["i0000", "i0001"]
    assert moving.first_token_s < hog.finish_s
    assert (moving.expected_hit_tokens, moving.hit_tokens) == (0, 0)


def test_who_begins_as_one_that_waits_does_not_overtake_it_nor_a_small_one() -> None:
    """It would find nothing and compute all of it, ahead of both."""
    hog = prompt(0, 10.0, *range(20, 26), output=400)
    first, small, follows = prompt(1, 12.0, *range(1, 7)), prompt(2, 12.5, 40, 41), prompt(3, 13.0, *range(1, 7))
    run(hog, first, small, follows, instances=1, blocks=250)
    assert hog.finish_s < small.first_token_s < first.first_token_s < follows.first_token_s
    assert (first.hit_tokens, follows.hit_tokens) == (0, 6 * UNIT_TOKENS)
    assert follows.expected_hit_tokens == 6 * UNIT_TOKENS, "what waits there has less to compute"
