"""Whole runs in which prompts begin alike: where they go, and what if what was cached is not there any more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llumnix.config import PolicyConfig
from llumnix.recording import RECORD, differences
from llumnix.sim.driver import simulate
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.faults import parse_fault
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import PlannedDrain, RunSetup
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
