"""Scheduler, front ends, llumlets and engines together, any interleaving, with deaths of each: no token is lost or
doubled, nothing is leaked, everything ends.

The world (`cluster_world`) checks after every step; `settle` checks that all comes to its end and all is given back.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from cluster_walk import CONFUSED, IN_ROLES, STRANGERS, WEIGHTS, Action, walk
from cluster_world import Cluster
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

USUAL = 0.7
"""Of all steps: what happens without faults."""


class ClusterModel(RuleBasedStateMachine):
    """Hypothesis chooses what happens and to whom, and shrinks what it finds to the few steps that matter."""

    @initialize(blocks=st.sampled_from([24, 60]), front_ends=st.integers(1, 2), scaling=st.booleans())
    def begin(self, blocks: int, front_ends: int, scaling: bool) -> None:
        self.world = Cluster(3, front_ends, blocks, scaling=scaling)

    @rule(rng=st.randoms(use_true_random=False), count=st.integers(1, 12))
    def goes_on(self, rng: random.Random, count: int) -> None:
        for action in rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count):
            if WEIGHTS[action] > USUAL:
                action(self.world, rng)
                self.world.check()

    @invariant()
    def nothing_is_wrong(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()


def _add_rule(action: Action) -> None:
    def happens(self: ClusterModel, rng: random.Random) -> None:
        action(self.world, rng)

    happens.__name__ = action.__name__
    setattr(ClusterModel, action.__name__, rule(rng=st.randoms(use_true_random=False))(happens))


for each in WEIGHTS:
    _add_rule(each)


def run(examples: int, steps: int) -> None:
    chosen = settings(
        derandomize=True,
        max_examples=examples,
        stateful_step_count=steps,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(ClusterModel, settings=chosen)


def test_no_interleaving_breaks_the_cluster() -> None:
    run(examples=30, steps=40)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_no_interleaving_breaks_the_cluster_in_two_thousand_examples() -> None:
    run(examples=2000, steps=60)


@pytest.mark.parametrize(
    "weights", [WEIGHTS, CONFUSED, STRANGERS, IN_ROLES], ids=["usual", "confused", "strangers", "in roles"]
)
def test_walk_through_a_cluster(weights: dict[Action, float]) -> None:
    for seed in range(1000, 1030):
        walk(seed, 600, weights)


def test_walks_of_clusters_reach_what_they_are_meant_to_reach() -> None:
    """A model in which nobody moves, doubts, drains or dies would prove nothing."""
    seen: Counter[str] = Counter()
    for seed in range(60):
        for weights in (WEIGHTS, CONFUSED, STRANGERS):
            seen += reached(walk(seed, 400, weights))
    wanted = {
        *("moved", "by hand", "the target was lost", "refused: no room", "refused: draining", "finished", "preempted"),
        *("the target did not confirm, and the front end let it stay", "replay: was lost", "replay: drains"),
        *("replay: was stopped", "parked", "drain: empty", "drain: cut off", "drain: lost", "drain: withdrawn"),
        *("No instance can take the request now", "cannot be continued exactly", "token replay failed"),
        *("scaled in", "scaled out", "scheduler replaced", "front end replaced", "late letters"),
    }
    assert wanted - seen.keys() == set()


def reached(world: Cluster) -> Counter[str]:
    seen: Counter[str] = Counter()
    for instance in world.instances.values():
        seen["late letters"] += instance.llumlet.late
        for answer in instance.answers:
            seen[answer.outcome.why_not or "moved"] += 1
            seen["by hand"] += answer.outcome.ok and answer.outcome.order.reason == "by hand"
    for client in world.clients:
        for why in client.replays:
            seen["replay: " + next((what for what in ("was lost", "drains", "was stopped") if what in why), why)] += 1
        seen["parked"] += client.parks
        for promise in ("No instance can take the request now", "cannot be continued exactly", "token replay failed"):
            seen[promise] += promise in client.refused
    for report in world.finished_drains:
        seen[f"drain: {report.outcome}"] += 1
        seen["scaled in"] += report.why.startswith("by auto-scaling")
    seen["scaled out"] += world.last_order > 0
    seen["scheduler replaced"] += world.schedulers > 1
    seen["front end replaced"] += any(front_end.incarnation > 1 for front_end in world.front_ends)
    return +seen
