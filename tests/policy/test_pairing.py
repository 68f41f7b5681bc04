"""Which instances exchange a request, and why others do not. De-fragmentation, load balance and room for high
priority are situations here, not code."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llumnix.policy.catalogue import POLICIES
from llumnix.policy.pairing import (
    TRIES_PER_SOURCE,
    Load,
    PairingRound,
    PairingTerms,
    Why,
    likely_victims,
    pair_by_benefit,
    with_added,
    without,
)
from llumnix.policy.pairing_paper import pair_by_rank
from llumnix.policy.snapshot import STANDING_S, ClusterSnapshot, InstanceSnapshot
from llumnix.policy.virtual_usage import migration_freeness, room_blocks
from llumnix.types import InstanceId, InstanceState, Role

TERMS = PairingTerms(migrate_out_freeness=10.0, migrate_in_freeness=30.0, priority_target_tokens=1600)
PAPER_TERMS = PairingTerms(migrate_out_freeness=3.0, migrate_in_freeness=3.0, priority_target_tokens=1600)


def load(id: str, free: int, running: int, **facts: object) -> InstanceSnapshot:
    usual = {"at": 0.0, "seq": 1, "total_blocks": 1000, "smallest_running_blocks": 20 if running else 0}
    return InstanceSnapshot(id=InstanceId(id), free_blocks=free, running=running, **{**usual, **facts})  # type: ignore[arg-type]


def cluster(*instances: InstanceSnapshot) -> ClusterSnapshot:
    return ClusterSnapshot(at=0.0, instances=tuple(sorted(instances, key=lambda one: one.id)))


def pairs(paired: PairingRound) -> list[tuple[str, str]]:
    return [(pair.source, pair.target) for pair in paired.pairs]


def whys(paired: PairingRound) -> list[tuple[str, str | None, Why]]:
    return [(no.source, no.target, no.why) for no in paired.rejected]


FULL = load("full", 20, 40)
FREE = load("free", 900, 5)
HEAD = {"waiting": 1, "head_of_line_blocks": 60, "queued_blocks": 60}


@pytest.mark.parametrize(
    ("situation", "instances", "expected"),
    [
        ("load balance: a full one and a free one", [FULL, FREE], [("full", "free")]),
        ("all fine", [load("a", 500, 20), load("b", 600, 20)], []),
        ("between the thresholds nothing happens", [load("a", 500, 40), FREE], []),
        ("all full", [FULL, load("b", 30, 40)], []),
        ("de-fragmentation: room in all together, but the head of the queue fits nowhere",
         [load("a", 50, 6, **HEAD), load("b", 350, 6)], [("a", "b")]),
        ("preempted requests, though there is room again", [load("a", 400, 10, preempted=1), FREE], [("a", "free")]),
        ("nothing is given to those that preempt", [FULL, load("b", 900, 5, preempted=1, **HEAD)], []),
        ("priority: normals leave an instance with a high one", [load("a", 700, 10, high_running=1), FREE],
         [("a", "free")]),
        ("priority: an instance with headroom takes nothing", [FULL, load("b", 800, 4, high_running=1)], []),
        ("priority: the high ones themselves stay", [load("a", 20, 10, high_running=10), FREE], []),
        ("the least free goes to the freest", [FULL, load("fuller", 10, 40), FREE, load("freest", 950, 5)],
         [("fuller", "freest"), ("full", "free")]),
        ("more sources than targets", [FULL, load("fuller", 10, 40), FREE], [("fuller", "free")]),
        ("one gives as much as it may already", [load("full", 20, 40, outgoing=1), FREE], []),
        ("one takes as much as it may already", [FULL, load("free", 900, 5, incoming=1)], []),
        ("one gives while it still takes", [load("full", 20, 40, incoming=1), FREE], [("full", "free")]),
        ("draining ones are not paired: the drain moves their requests", [
            load("a", 20, 40, state=InstanceState.DRAINING), FREE], []),
        ("those that start or are gone are not paired", [FULL, load("b", 1000, 0, state=InstanceState.STARTING),
         load("c", 1000, 0, state=InstanceState.LOST)], []),
        ("ties: by id", [load("b", 20, 40), load("a", 20, 40), load("d", 900, 5), load("c", 900, 5)],
         [("a", "c"), ("b", "d")]),
        ("one for tokens gives its queue to another one", [
            load("full", 20, 40, role=Role.DECODE, **HEAD), load("free", 900, 5, role=Role.DECODE)],
         [("full", "free")]),
        ("one for tokens takes one that runs, whoever waits there", [
            load("full", 20, 40, **HEAD), load("free", 900, 5, role=Role.DECODE)], [("full", "free")]),
        ("those for tokens hide nobody from whom only a prompt is to be had", [
            load("full", 20, 40, smallest_running_blocks=0, **HEAD), load("mixed", 800, 5),
            *(load(f"d{number}", 900, 5, role=Role.DECODE) for number in range(TRIES_PER_SOURCE))],
         [("full", "mixed")]),
        ("a queue behind a full batch goes to where there is a place", [
            load("full", 500, 8, max_running=8, **HEAD), FREE], [("full", "free")]),
        ("one for tokens with a target takes prompts", [
            load("full", 20, 40, **HEAD), load("free", 900, 5, role=Role.DECODE, tpot_target_s=0.1)],
         [("full", "free")]),
        ("alone", [FULL], []),
        ("nobody", [], []),
    ],
)  # fmt: skip
def test_pairs_when(situation: str, instances: list[InstanceSnapshot], expected: list[tuple[str, str]]) -> None:
    assert pairs(pair_by_benefit(cluster(*instances), TERMS)) == expected, situation


@pytest.mark.parametrize(
    ("situation", "instances", "terms", "expected"),
    [
        ("no target", [FULL], {}, ("full", None, Why.NO_TARGET)),
        ("nothing that can move", [load("full", 20, 40, smallest_running_blocks=0), FREE], {},
         ("full", None, Why.NOTHING_TO_GIVE)),
        ("an engine that moves nothing", [load("full", 20, 40, waiting=9, pinned=True), FREE], {},
         ("full", None, Why.NOTHING_TO_GIVE)),
        ("source busy", [load("full", 20, 40, outgoing=1), FREE], {}, ("full", None, Why.SOURCE_BUSY)),
        ("had nothing to give", [FULL, FREE], {"empty_handed": {"full"}}, ("full", None, Why.EMPTY_HANDED)),
        ("refused a moment ago", [FULL, FREE], {"backing_off": {("full", "free")}}, ("full", "free", Why.BACKING_OFF)),
        ("no room", [load("full", 20, 1, smallest_running_blocks=950, preempted=1), FREE], {},
         ("full", "free", Why.NO_ROOM)),
        ("no slot in the target's batch", [FULL, load("free", 900, 5, max_running=5)], {},
         ("full", "free", Why.NO_ROOM)),
        ("no benefit: the big one would only change places", [
            load("full", 50, 2, smallest_running_blocks=800, preempted=1), load("free", 840, 2)], {},
         ("full", "free", Why.NO_BENEFIT)),
        ("its first waits for its prompt, and the target is for tokens", [
            load("full", 20, 40, smallest_running_blocks=0, **HEAD), load("free", 900, 5, role=Role.DECODE)], {},
         ("full", "free", Why.FOR_TOKENS)),
        ("its engine stands still", [load("full", 20, 40, standing_s=STANDING_S), FREE], {},
         ("full", None, Why.STANDS_STILL)),
        ("only it is free enough itself", [load("full", 400, 10, preempted=1), load("b", 500, 40)], {},
         ("full", None, Why.NO_TARGET)),
        ("those that are free enough stand still", [FULL, load("free", 900, 5, standing_s=STANDING_S)], {},
         ("full", None, Why.ALL_BUSY)),
        ("those that are free enough take one already", [FULL, load("free", 900, 5, incoming=1)], {},
         ("full", None, Why.ALL_BUSY)),
        ("the target would give away itself", [
            load("full", 5, 40, smallest_running_blocks=750), load("free", 800, 20)], {},
         ("full", "free", Why.WOULD_BOUNCE)),
    ],
)  # fmt: skip
def test_rejects_with_reason_when(situation: str, instances: Any, terms: dict[str, Any], expected: object) -> None:
    facts = {field: getattr(TERMS, field) for field in TERMS.__struct_fields__}
    paired = pair_by_benefit(cluster(*instances), PairingTerms(**facts | terms))
    assert pairs(paired) == [], situation
    assert whys(paired) == [expected], situation
    assert str(paired.rejected[0]).startswith("full")


def test_next_target_is_tried_after_a_refusal() -> None:
    facts = {field: getattr(TERMS, field) for field in TERMS.__struct_fields__}
    terms = PairingTerms(**facts | {"backing_off": {("full", "freest")}})
    paired = pair_by_benefit(cluster(FULL, FREE, load("freest", 950, 5)), terms)
    assert pairs(paired) == [("full", "free")]
    assert whys(paired) == [("full", "freest", Why.BACKING_OFF)]


def test_shortest_running_one_goes_when_the_head_of_the_queue_is_too_large_for_the_target() -> None:
    blocked = load("a", 100, 6, waiting=1, head_of_line_blocks=500, queued_blocks=500)
    paired = pair_by_benefit(cluster(blocked, load("b", 400, 6)), TERMS)
    assert pairs(paired) == [("a", "b")]
    assert paired.pairs[0].source_after == 120 - 500


def test_an_evicting_move_counts_as_good_though_the_shortage_is_shared_by_fewer() -> None:
    """Divided by the batch, −680/20 would become −660/19: lower. The shortage itself is what shrinks."""
    crowded = load("a", 220, 20, high_running=1)
    paired = pair_by_benefit(cluster(crowded, FREE), TERMS)
    assert pairs(paired) == [("a", "free")]
    assert (paired.pairs[0].source_freeness, paired.pairs[0].source_after) == (-680, -660)


def test_reason_names_the_numbers() -> None:
    paired = pair_by_benefit(cluster(load("full", 20, 40, preempted=2), FREE), TERMS)
    assert str(paired.pairs[0]) == "freeness 0.5, 2 preempted against 180; 1.026 and 146.7 after the move"
    assert str(pair_by_rank(cluster(FULL, FREE), PAPER_TERMS).pairs[0]) == "freeness 0.5 against 180"
    refused = pair_by_benefit(cluster(FULL), TERMS).rejected[0]
    assert str(refused) == "full: no instance is free enough"


def test_likely_victim_follows_the_victim_rule() -> None:
    queue = {"waiting": 4, "head_of_line_blocks": 60, "queued_blocks": 90}
    assert likely_victims(load("a", 0, 4, **queue)) == (Load(60, True), Load(20, False))
    assert likely_victims(load("a", 0, 4, **queue, high_waiting=1)) == (Load(60, True), Load(20, False))
    assert likely_victims(load("a", 0, 4, **queue, high_waiting=4, high_running=4)) == (Load(60, True),)
    assert likely_victims(load("a", 0, 4, high_running=4)) == ()


def test_looking_ahead_keeps_the_books() -> None:
    instance = load("a", 100, 4, waiting=3, head_of_line_blocks=60, queued_blocks=100)
    gone = without(instance, Load(60, True))
    assert (gone.waiting, gone.queued_blocks, gone.head_of_line_blocks, gone.free_blocks) == (2, 40, 20, 100)
    gone = without(instance, Load(20, False))
    assert (gone.running, gone.free_blocks, gone.waiting) == (3, 120, 3)
    more = with_added(instance, Load(20, True))
    assert (more.running, more.free_blocks) == (5, 80)


PAPER_QUEUE = {"waiting": 3, "head_of_line_blocks": 10, "queued_blocks": 400}


@pytest.mark.parametrize(
    ("situation", "instances", "expected"),
    [
        ("one threshold for both", [load("a", 70, 40), load("b", 200, 40)], [("a", "b")]),
        ("exactly at the threshold: neither", [load("a", 120, 40), load("b", 20, 40)], []),
        ("the whole queue is charged", [load("a", 400, 9, **PAPER_QUEUE), FREE], [("a", "free")]),
        ("i-th with i-th", [load("a", 20, 40), load("b", 10, 40), load("c", 900, 5), load("d", 950, 5)],
         [("b", "d"), ("a", "c")]),
        ("no test of benefit or room", [load("a", 5, 2, smallest_running_blocks=900), load("b", 7, 2)], [("a", "b")]),
        ("preempted: a source, and never a target", [load("a", 900, 2, preempted=1), load("b", 900, 3, preempted=1)],
         []),
        ("a busy target costs the pair", [FULL, load("b", 950, 5, incoming=1), FREE], []),
        ("a busy source costs the pair", [load("a", 20, 40, outgoing=1), FREE], []),
    ],
)  # fmt: skip
def test_paper_pairs_when(situation: str, instances: list[InstanceSnapshot], expected: list[tuple[str, str]]) -> None:
    assert pairs(pair_by_rank(cluster(*instances), PAPER_TERMS)) == expected, situation


def test_paper_round_says_why_pairs_fell_out() -> None:
    instances = [FULL, load("fuller", 10, 40), load("b", 950, 5, incoming=1)]
    paired = pair_by_rank(cluster(*instances), PAPER_TERMS)
    assert whys(paired) == [("full", None, Why.NO_TARGET), ("fuller", "b", Why.TARGET_BUSY)]
    terms = PairingTerms(migrate_out_freeness=3, migrate_in_freeness=3, backing_off={("full", "free")})  # type: ignore[arg-type]
    assert whys(pair_by_rank(cluster(FULL, FREE), terms)) == [("full", "free", Why.BACKING_OFF)]
    terms = PairingTerms(migrate_out_freeness=3, migrate_in_freeness=3, empty_handed={"full"})  # type: ignore[arg-type]
    assert whys(pair_by_rank(cluster(FULL, FREE), terms)) == [("full", "free", Why.EMPTY_HANDED)]


@st.composite
def loads(draw: st.DrawFn, id: str) -> InstanceSnapshot:
    """Crowded, free, or anything: otherwise most clusters would hold no pair at all."""
    least_free, most_free, least_running = draw(st.sampled_from([(0, 150, 20), (500, 1000, 0), (0, 1000, 0)]))
    free, running = draw(st.integers(least_free, most_free)), draw(st.integers(least_running, least_running + 20))
    waiting = draw(st.sampled_from([0, 0, 1, 4]))
    head = draw(st.integers(1, 300)) if waiting else 0
    rarely_some = st.sampled_from([0, 0, 0, 0, 0, 1])
    return load(
        id,
        free,
        running,
        waiting=waiting,
        preempted=min(waiting, draw(rarely_some)),
        head_of_line_blocks=head,
        queued_blocks=head + (draw(st.integers(waiting - 1, 500)) if waiting > 1 else 0),
        high_running=min(running, draw(rarely_some)),
        high_waiting=min(waiting, draw(rarely_some)),
        smallest_running_blocks=draw(st.integers(0, (1000 - free) // running)) if running else 0,
        incoming=draw(rarely_some),
        outgoing=draw(rarely_some),
        state=draw(st.sampled_from([InstanceState.RUNNING] * 8 + [InstanceState.DRAINING, InstanceState.STARTING])),
    )


clusters = st.tuples(*(loads(f"i{k}") for k in range(5))).map(lambda instances: cluster(*instances))


@settings(max_examples=60)
@given(clusters)
def test_a_pair_raises_the_lower_freeness_and_fits(snapshot: ClusterSnapshot) -> None:
    by_id = {instance.id: instance for instance in snapshot.instances}
    for pair in pair_by_benefit(snapshot, TERMS).pairs:
        source, target = by_id[pair.source], by_id[pair.target]
        # The move that the round looked at is one of the likely victims; recomputed here from the reports alone.
        victim = next(one for one in likely_victims(source) if one.blocks <= room_blocks(target))
        before = min(migration_freeness(source, 1600), migration_freeness(target, 1600))
        after = min(
            migration_freeness(without(source, victim), 1600), migration_freeness(with_added(target, victim), 1600)
        )
        assert after > before
        assert with_added(target, victim).free_blocks >= target.watermark_blocks


@settings(max_examples=60)
@given(clusters, st.sampled_from(["llumnix", "llumnix-paper", "llumnix-base"]))
def test_a_round_uses_each_instance_once_and_within_the_limit(snapshot: ClusterSnapshot, name: str) -> None:
    rule = POLICIES[name].pairing
    assert rule is not None
    by_id = {instance.id: instance for instance in snapshot.instances}
    paired = rule(snapshot, TERMS)
    sources, targets = [pair.source for pair in paired.pairs], [pair.target for pair in paired.pairs]
    assert len(set(sources)) == len(sources)
    assert len(set(targets)) == len(targets)
    assert not set(sources) & set(targets)
    assert all(by_id[one].state is InstanceState.RUNNING for one in sources + targets)
    assert all(by_id[one].outgoing < TERMS.max_migrations for one in sources)
    assert all(by_id[one].incoming < TERMS.max_migrations for one in targets)
    assert not set(sources) & {no.source for no in paired.rejected if no.target is None}


@settings(max_examples=60)
@given(clusters)
def test_every_source_is_paired_or_told_why_not(snapshot: ClusterSnapshot) -> None:
    paired = pair_by_benefit(snapshot, TERMS)
    answered = {pair.source for pair in paired.pairs} | {no.source for no in paired.rejected}
    needy = {
        one.id
        for one in snapshot.instances
        if one.state is InstanceState.RUNNING and (one.preempted or migration_freeness(one, 1600) < 10)
    }
    assert answered == needy


def test_what_lacks_room_is_what_may_go_there() -> None:
    """Its first waits for its prompt and would fit, but the target is for tokens."""
    giver = load("full", 20, 40, smallest_running_blocks=200, preempted=1, **HEAD)
    paired = pair_by_benefit(cluster(giver, load("free", 110, 1, role=Role.DECODE)), TERMS)
    (no,) = [each for each in paired.rejected if each.target == "free"]
    assert (no.why, no.before, no.after) == (Why.NO_ROOM, 200, 110)
