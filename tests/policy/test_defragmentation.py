"""Room for the first of a queue: who gives a running request to whom, and when nobody does."""

from __future__ import annotations

import pytest

from llumnix.policy.defragmentation import HEAD_PATIENCE_S, missing_blocks, pair_and_make_room, spare_blocks
from llumnix.policy.pairing import Pair, PairingTerms, Rejection, Why
from llumnix.policy.snapshot import STANDING_S, ClusterSnapshot, InstanceSnapshot
from llumnix.types import InstanceId, InstanceState

TERMS = PairingTerms(migrate_out_freeness=3.0, migrate_in_freeness=3.0, priority_target_tokens=1600)
BLOCKED = {"free_blocks": 60, "running": 20, "waiting": 2, "head_of_line_blocks": 90, "queued_blocks": 100}
"""The first of its queue lacks 40 blocks."""


def load(id: str, **facts: object) -> InstanceSnapshot:
    usual = {"id": InstanceId(id), "at": 0.0, "seq": 1, "total_blocks": 1000, "watermark_blocks": 10}
    return InstanceSnapshot(**{**usual, "smallest_running_blocks": 300, **facts})  # type: ignore[arg-type]


def pairs(*instances: InstanceSnapshot, terms: PairingTerms = TERMS) -> list[tuple[str, str, int, int | None]]:
    found = pair_and_make_room(ClusterSnapshot(at=0.0, instances=instances), terms).pairs
    return [(pair.source, pair.target, pair.wanted.at_least_blocks, pair.wanted.room_blocks) for pair in found]


def test_a_piece_moves_to_where_it_is_idle_though_both_look_full() -> None:
    assert pairs(load("a", **BLOCKED), load("b", free_blocks=80, running=25)) == [("a", "b", 40, 45)]


def test_room_for_the_first_is_room_for_those_that_run_beside_it_to_grow() -> None:
    assert missing_blocks(load("a", **BLOCKED, spared_blocks=5)) == 45
    assert pairs(load("a", **BLOCKED, spared_blocks=5), load("b", free_blocks=80, running=25)) == [("a", "b", 45, 45)]
    assert pairs(load("a", **BLOCKED, spared_blocks=6), load("b", free_blocks=80, running=25)) == []


def test_an_instance_that_waits_itself_gives_its_piece_to_one_that_needs_less() -> None:
    wants_more = {"free_blocks": 90, "running": 25, "waiting": 1, "head_of_line_blocks": 300, "queued_blocks": 300}
    assert pairs(load("a", **BLOCKED), load("b", **wants_more)) == [("a", "b", 40, 55)]
    wants_less = wants_more | {"head_of_line_blocks": 110, "queued_blocks": 110}
    assert missing_blocks(load("b", **wants_less)) == 30
    assert pairs(load("a", **BLOCKED), load("b", **wants_less)) == [("b", "a", 30, 30)]
    assert pairs(load("a", **(BLOCKED | {"running": 40})), load("b", **wants_less)) == []


def test_who_has_been_first_for_long_keeps_all_that_becomes_free() -> None:
    """A request that needs most of the memory lacks more than all others, and would be set back by each of them."""
    large = {"free_blocks": 90, "running": 25, "waiting": 1, "head_of_line_blocks": 900, "queued_blocks": 900}
    assert pairs(load("a", **BLOCKED), load("b", **large, head_of_line_s=HEAD_PATIENCE_S - 1)) == [("a", "b", 40, 55)]
    assert pairs(load("a", **BLOCKED), load("b", **large, head_of_line_s=HEAD_PATIENCE_S)) == []


def test_the_smallest_shortage_gets_the_largest_piece_and_nobody_two_parts() -> None:
    instances = [
        load("a", **BLOCKED),
        load("b", **(BLOCKED | {"free_blocks": 90})),
        load("c", free_blocks=75, running=20),
        load("d", free_blocks=95, running=20),
    ]
    assert pairs(*instances) == [("b", "d", 10, 65), ("a", "c", 40, 45)]


@pytest.mark.parametrize(
    ("situation", "giver", "taker"),
    [
        ("the piece is too small", {}, {"free_blocks": 74}),
        ("it has no slot", {}, {"running": 25, "max_running": 25}),
        ("its engine stands still", {}, {"standing_s": STANDING_S}),
        ("it takes one already", {}, {"incoming": 1}),
        ("it drains", {}, {"state": InstanceState.DRAINING}),
        ("it is headroom", {}, {"high_running": 1}),
        ("its own queue will use it", {}, {"waiting": 1, "head_of_line_blocks": 20, "queued_blocks": 20}),
        ("the giver drains", {"state": InstanceState.DRAINING}, {}),
        ("the giver gives one already", {"outgoing": 1}, {}),
        ("nothing there can move", {"smallest_running_blocks": 0}, {}),
        ("only high ones run there", {"high_running": 20}, {}),
        ("the head can start now", {"free_blocks": 100}, {}),
        ("nobody waits", {"waiting": 0, "head_of_line_blocks": 0, "queued_blocks": 0}, {}),
    ],
)
def test_nothing_moves_when(situation: str, giver: dict[str, object], taker: dict[str, object]) -> None:
    instances = load("a", **(BLOCKED | giver)), load("b", **({"free_blocks": 80, "running": 25} | taker))
    assert [pair for pair in pairs(*instances) if pair[2]] == [], situation


def test_whoever_refused_or_had_nothing_a_moment_ago_is_left_alone() -> None:
    a, b = load("a", **BLOCKED), load("b", free_blocks=80, running=25)
    refused = PairingTerms(migrate_out_freeness=3.0, migrate_in_freeness=3.0, backing_off=frozenset({(a.id, b.id)}))
    empty = PairingTerms(migrate_out_freeness=3.0, migrate_in_freeness=3.0, empty_handed=frozenset({a.id}))
    assert pairs(a, b, terms=refused) == pairs(a, b, terms=empty) == []


def test_pairing_by_benefit_comes_first() -> None:
    roomy = load("c", free_blocks=800, running=5)
    assert [pair[:3] for pair in pairs(load("a", **BLOCKED), roomy)] == [("a", "c", 0)]


def test_the_reason_says_what_is_missing() -> None:
    instances = load("a", **BLOCKED), load("b", free_blocks=80, running=25)
    (pair,) = pair_and_make_room(ClusterSnapshot(at=0.0, instances=instances), TERMS).pairs
    assert isinstance(pair, Pair)
    assert str(pair) == (
        "room for the first in the queue: it lacks 40 blocks, the target spares 45; freeness -40 against 2.8"
    )


LACKS_ROOM_TO_GROW = {
    "free_blocks": 200,
    "running": 20,
    "waiting": 1,
    "head_of_line_blocks": 100,
    "queued_blocks": 100,
    "spared_blocks": 200,
}
"""It is free enough not to give requests away for that."""


@pytest.mark.parametrize(
    ("giver", "empty_handed", "why"),
    [
        ({}, "", Why.NO_PIECE),
        ({"outgoing": 1}, "", Why.SOURCE_BUSY),
        ({"smallest_running_blocks": 0}, "", Why.NOTHING_TO_GIVE),
        ({}, "a", Why.EMPTY_HANDED),
    ],
)
def test_one_whose_first_in_the_queue_waits_is_told_why_nobody_makes_room(
    giver: dict[str, object], empty_handed: str, why: Why
) -> None:
    here, small = load("a", **(LACKS_ROOM_TO_GROW | giver)), load("b", free_blocks=110, running=5)
    emptied = [InstanceId(name) for name in empty_handed]
    terms = PairingTerms(migrate_out_freeness=3.0, migrate_in_freeness=3.0, empty_handed=emptied)
    found = pair_and_make_room(ClusterSnapshot(at=0.0, instances=(here, small)), terms)
    assert (found.pairs, found.rejected) == ((), (Rejection(here.id, None, why),))


def test_who_looks_full_besides_is_told_that_once() -> None:
    found = pair_and_make_room(ClusterSnapshot(at=0.0, instances=(load("a", **BLOCKED),)), TERMS)
    assert [no.why for no in found.rejected] == [Why.NO_TARGET]


def test_an_empty_queue_wants_nothing_and_a_full_batch_spares_nothing() -> None:
    assert missing_blocks(load("a", free_blocks=0, running=9)) == 0
    assert spare_blocks(load("a", free_blocks=500, running=9, max_running=9), None) == 0
