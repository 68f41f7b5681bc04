"""Who takes a request of an instance that is about to run out of blocks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.policy.pairing import Load, PairingTerms, with_added
from llumnix.policy.relief import find_relief, short_blocks
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.virtual_usage import migration_freeness, room_blocks
from llumnix.types import InstanceId, InstanceState

TERMS = PairingTerms(migrate_out_freeness=3.0, migrate_in_freeness=3.0)
SHORT = {"free_blocks": 4, "running": 20, "smallest_running_blocks": 20, "short_blocks": 6}


def load(id: str, **facts: Any) -> InstanceSnapshot:
    usual = {"id": InstanceId(id), "at": 0.0, "seq": 1, "total_blocks": 1000, "free_blocks": 1000}
    return InstanceSnapshot(**{**usual, **facts})


def relief(giver: dict[str, Any], *takers: InstanceSnapshot, terms: PairingTerms = TERMS) -> str | None:
    instance = load("short", **giver)
    pair = find_relief(instance, (instance, *takers), terms)
    return None if pair is None else pair.target


def test_the_freest_takes_it() -> None:
    assert relief(SHORT, load("b", free_blocks=300, running=10), load("c", free_blocks=300, running=5)) == "c"


def test_a_target_below_the_threshold_of_pairing_will_do() -> None:
    assert relief(SHORT, load("b", free_blocks=50, running=20)) == "b"


@pytest.mark.parametrize(
    ("situation", "giver", "taker"),
    [
        ("no room", {}, {"free_blocks": 19, "running": 0}),
        ("no block to spare for its own", {}, {"free_blocks": 30, "running": 15}),
        ("short itself", {}, {"free_blocks": 500, "running": 10, "short_blocks": 1}),
        ("it has preempted", {}, {"free_blocks": 500, "running": 10, "preempted": 1, "waiting": 1}),
        ("it drains", {}, {"state": InstanceState.DRAINING}),
        ("it takes two already", {}, {"incoming": 2}),
        ("the source gives two already", {"outgoing": 2}, {}),
        ("the source drains", {"state": InstanceState.DRAINING}, {}),
        ("only high ones run there", {"high_running": 20}, {}),
        ("nothing there can move", {"smallest_running_blocks": 0}, {}),
    ],
)
def test_nobody_takes_it_when(situation: str, giver: dict[str, Any], taker: dict[str, Any]) -> None:
    assert relief({**SHORT, **giver}, load("b", **taker)) is None, situation


def test_a_pair_that_was_refused_a_moment_ago_is_left_alone() -> None:
    terms = PairingTerms(
        migrate_out_freeness=3.0,
        migrate_in_freeness=3.0,
        backing_off=frozenset({(InstanceId("short"), InstanceId("b"))}),
    )
    assert relief(SHORT, load("b"), terms=terms) is None
    assert relief(SHORT, load("b"), load("c", free_blocks=500, running=5), terms=terms) == "c"


@pytest.mark.parametrize(("growth", "free", "short"), [(0, 0, 0), (5, 9, 0), (9, 5, 4), (1, -20, 21)])
def test_what_will_be_missing(growth: int, free: int, short: int) -> None:
    assert short_blocks(growth, free) == short


@pytest.mark.parametrize(
    ("since_its_report", "first"),
    [
        ("it is to drain", {"state": InstanceState.DRAINING}),
        ("its room was promised", {"free_blocks": 3, "running": 20}),
    ],
)
def test_whom_its_report_says_to_be_the_freest_hides_nobody(since_its_report: str, first: dict[str, Any]) -> None:
    assert relief(SHORT, load("a", **first), load("b")) == "b", since_its_report


instances = st.builds(
    load,
    id=st.sampled_from("abcdefgh"),
    free_blocks=st.integers(0, 400),
    running=st.integers(0, 30),
    queued_blocks=st.integers(0, 30),
    short_blocks=st.sampled_from((0, 0, 0, 3)),
    incoming=st.sampled_from((0, 0, 1, 2)),
)


@given(st.lists(instances, unique_by=lambda one: one.id), st.integers(0, 40), st.integers(1, 60))
def test_in_whatever_order_they_come_the_best_is_found_among_all(
    others: list[InstanceSnapshot], free: int, smallest: int
) -> None:
    giver = load("short", **{**SHORT, "free_blocks": free, "smallest_running_blocks": smallest})
    grown = {one.id: with_added(one, Load(smallest, queued=False)) for one in others}
    able = [
        one
        for one in others
        if not one.short_blocks and one.incoming < 2 and room_blocks(one) - one.running >= smallest
    ]
    better = [one.id for one in able if migration_freeness(grown[one.id], None) > migration_freeness(giver, None)]
    best = min(better, key=lambda name: (-migration_freeness(grown[name], None), name), default=None)
    assert relief({"free_blocks": free, "running": 20, "smallest_running_blocks": smallest}, *others) == best
