"""Why a request, all of an instance, or all of a cluster stays where it is: the first rule that keeps it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from llumnix.config import PolicyConfig
from llumnix.policy.pairing import Rejection, Why
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot, RequestSnapshot, StepCost
from llumnix.policy.why_not import Whereabouts, why_instance_keeps_all, why_not_moved, why_nothing_moves
from llumnix.types import HIGH, NORMAL, InstanceId, InstanceState, RequestId, RequestState, Role

I0, I1 = InstanceId("i0"), InstanceId("i1")
TIGHT = InstanceSnapshot(
    id=I0, at=0.0, seq=1, total_blocks=100, free_blocks=18, running=10, high_running=1, smallest_running_blocks=4
)
"""Freeness 1.8: below the 3 at which an instance gives requests away."""

REQUEST = RequestSnapshot(
    id=RequestId("r"),
    state=RequestState.RUNNING,
    priority=NORMAL,
    arrival_s=0.0,
    output_tokens=10,
    held_blocks=7,
    needed_blocks=7,
    length_blocks=7,
)
THERE = Whereabouts(request=REQUEST, moved_ago_s=None, instance=TIGHT)
NO_ROOM = Rejection(I0, I1, Why.NO_ROOM, 4, 3)


def request(**facts: Any) -> Whereabouts:
    return replace(THERE, request=replace(REQUEST, **facts))


def instance(**facts: Any) -> Whereabouts:
    return replace(THERE, instance=replace(TIGHT, high_running=0, **facts))


IN_ORDER: list[tuple[Whereabouts, dict[str, Any], str]] = [
    (request(why_pinned="it streams its input"), {}, "it cannot move: it streams its input"),
    (request(state=RequestState.MIGRATING), {}, "it is moving just now"),
    (THERE, {"policy": "round-robin"}, "nothing moves by itself with --policy round-robin"),
    (
        instance(state=InstanceState.DRAINING),
        {},
        "i0 drains: what it has moves as soon as there is room for it, or ends before",
    ),
    (THERE, {"migration": False}, "nothing moves by itself: --no-migration"),
    (
        instance(free_blocks=90),
        {},
        "i0 gives nothing away: its freeness 9 is not below 3 (--migrate-out-freeness)",
    ),
    (
        replace(THERE, moved_ago_s=0.4),
        {},
        "it was to move 0.4 s ago, and is left alone for 1 s (--request-cooldown-s)",
    ),
    (request(priority=HIGH), {}, "i0 gives requests away, but none that is of high priority"),
    (
        THERE,
        {},
        f"i0 would give a request away, and in the last round could not: {NO_ROOM}",
    ),
]


@pytest.mark.parametrize(("there", "knobs", "why"), IN_ORDER, ids=lambda part: part if isinstance(part, str) else "")
def test_the_rule_that_keeps_it(there: Whereabouts, knobs: dict[str, Any], why: str) -> None:
    assert why_not_moved(there, PolicyConfig(**knobs), [Rejection(I1, None, Why.NO_TARGET), NO_ROOM]) == why


def test_one_that_is_free_but_slow_gives_away_too() -> None:
    no = Rejection(I0, I1, Why.NOT_FASTER, 0.05, 0.04, by_pace=True)
    why = why_not_moved(instance(free_blocks=90), PolicyConfig(), [no])
    assert why == f"i0 would give a request away, and in the last round could not: {no}"
    important = why_not_moved(request(priority=HIGH), PolicyConfig(), [no])
    assert important == why, "the important ones leave a slow one first"


def test_a_scheduler_that_is_silent_moves_nothing() -> None:
    why = why_not_moved(THERE, PolicyConfig(), [], scheduler_answers=False)
    assert why == "the scheduler, which says who gives requests to whom, does not answer"


def test_another_one_goes_first() -> None:
    why = why_not_moved(replace(THERE, moved_ago_s=1.1), PolicyConfig(), [Rejection(I1, None, Why.NO_TARGET)])
    assert why == "i0 gives requests away; another one goes first, by the rule 'cheapest to move'"


def test_by_the_papers_rule_a_request_that_decodes_nothing_yet_stays() -> None:
    why = why_not_moved(request(output_tokens=0), PolicyConfig(policy="llumnix-paper", migrate_out_freeness=5), [])
    assert why == "i0 gives requests away, but none that is not decoding"


def test_the_first_that_is_true_counts() -> None:
    """Each of these with all that is true of those behind it."""
    everything = replace(
        THERE,
        moved_ago_s=0.1,
        request=replace(REQUEST, why_pinned="it streams its input", state=RequestState.MIGRATING, priority=HIGH),
        instance=replace(TIGHT, state=InstanceState.DRAINING),
    )
    config = PolicyConfig(migration=False)
    said = []
    moving, still = (request(priority=HIGH, state=state) for state in (RequestState.MIGRATING, RequestState.RUNNING))
    for fact in ({}, {"request": moving.request}, {"request": still.request}, {"instance": TIGHT}):
        everything = replace(everything, **fact)
        said.append(why_not_moved(everything, config, [NO_ROOM]).split()[1])
    assert said == ["cannot", "is", "drains:", "moves"]


ROOMY = replace(TIGHT, id=I1, free_blocks=90)


def cluster(*instances: InstanceSnapshot) -> ClusterSnapshot:
    return ClusterSnapshot(at=0.0, instances=instances)


@pytest.mark.parametrize(
    ("instance", "knobs", "rejected", "why"),
    [
        (ROOMY, {}, [], "i1 gives nothing away: its freeness 9 is not below 3 (--migrate-out-freeness)"),
        (ROOMY, {"migration": False}, [], "nothing moves by itself: --no-migration"),
        (TIGHT, {}, [NO_ROOM], f"i0 would give a request away, and in the last round could not: {NO_ROOM}"),
        (TIGHT, {}, [Rejection(I1, None, Why.NO_TARGET)], "i0 gives requests away"),
    ],
)
def test_why_an_instance_keeps_all(
    instance: InstanceSnapshot, knobs: dict[str, Any], rejected: list[Rejection], why: str
) -> None:
    assert why_instance_keeps_all(instance, PolicyConfig(**knobs), rejected) == why


GIVES = replace(TIGHT, high_running=0)


@pytest.mark.parametrize(
    ("instances", "knobs", "rejected", "why"),
    [
        ((ROOMY,), {}, [], "1 instance takes requests: there is nowhere to move to"),
        ((), {}, [], "no instance takes requests: there is nowhere to move to"),
        ((ROOMY, GIVES), {"policy": "round-robin"}, [], "nothing moves by itself with --policy round-robin"),
        ((ROOMY, GIVES), {"migration": False}, [], "nothing moves by itself: --no-migration"),
        (
            (replace(ROOMY, state=InstanceState.DRAINING), GIVES),
            {"migration": False},
            [],
            "i1 drains: what it has moves as soon as there is room for it, or ends before",
        ),
        (
            (replace(ROOMY, state=InstanceState.DRAINING, running=0), ROOMY),
            {},
            [],
            "1 instance takes requests: there is nowhere to move to",
        ),
        (
            (ROOMY, replace(ROOMY, id=I0, free_blocks=50)),
            {},
            [],
            "no instance gives requests away: the lowest freeness, 5 of i0, is not below 3 (--migrate-out-freeness)",
        ),
        ((GIVES, ROOMY), {}, [NO_ROOM], f"i0 would give a request away, and in the last round could not: {NO_ROOM}"),
        (
            (GIVES, ROOMY),
            {},
            [Rejection(I1, None, Why.NO_TARGET)],
            "something is to move from i0 to i1: freeness 1.8 against 9; 2.444 and 7.818 after the move",
        ),
        (
            (GIVES, replace(GIVES, id=I1)),
            {},
            [],
            "2 instances would give a request away, and in the last round could not: {}; {}".format(
                *(Rejection(each, None, Why.NO_TARGET) for each in (I0, I1))
            ),
        ),
    ],
)
def test_why_nothing_moves_at_all(
    instances: tuple[InstanceSnapshot, ...], knobs: dict[str, Any], rejected: list[Rejection], why: str
) -> None:
    assert why_nothing_moves(cluster(*instances), PolicyConfig(**knobs), rejected) == why


def test_of_many_that_were_turned_down_some_are_named() -> None:
    instances = tuple(replace(GIVES, id=InstanceId(f"i{number}")) for number in range(9))
    why = why_nothing_moves(cluster(*instances), PolicyConfig(), [])
    assert why.startswith("9 instances would give a request away")
    assert why.endswith("; and 5 more")


LACKS_ROOM = replace(GIVES, free_blocks=60, waiting=1, head_of_line_blocks=20, queued_blocks=20, spared_blocks=50)
"""The first of its queue does not start, though its freeness, 3.6, is no reason to give requests away."""
NO_PIECE = Rejection(I0, None, Why.NO_PIECE)


def test_one_that_makes_room_for_the_first_of_its_queue_gives_requests_away() -> None:
    assert why_instance_keeps_all(LACKS_ROOM, PolicyConfig(), []) == "i0 gives requests away"
    turned_down = f"i0 would give a request away, and in the last round could not: {NO_PIECE}"
    assert why_instance_keeps_all(LACKS_ROOM, PolicyConfig(), [NO_PIECE]) == turned_down
    assert why_not_moved(replace(THERE, instance=LACKS_ROOM), PolicyConfig(), [NO_PIECE]) == turned_down
    small = replace(GIVES, id=I1, free_blocks=13, running=4)
    assert why_nothing_moves(cluster(LACKS_ROOM, small), PolicyConfig(), []) == turned_down
    keeps = "i0 gives nothing away: its freeness 3.636 is not below 3 (--migrate-out-freeness)"
    assert why_instance_keeps_all(replace(LACKS_ROOM, spared_blocks=0), PolicyConfig(), []) == keeps


FOR_PROMPTS = replace(ROOMY, id=I0, role=Role.PREFILL, to_decode=2, to_decode_blocks=15)
SLOW = StepCost(fixed_ms=40.0, prefill_token_us=100.0, request_us=500.0, context_token_us=1.0)
FOR_TOKENS = replace(ROOMY, role=Role.DECODE)
IN_TIME = replace(FOR_TOKENS, tpot_target_s=0.03)
HOMES: list[tuple[tuple[InstanceSnapshot, ...], str]] = [
    ((FOR_TOKENS,), ": what runs there leaves it with its first token"),
    (
        (replace(FOR_TOKENS, free_blocks=17),),
        ", and nobody takes those that make tokens: i1: no room beside those that it has",
    ),
    (
        (replace(IN_TIME, step_cost=SLOW),),
        ", and nobody takes those that make tokens: i1: tokens would come later than its target",
    ),
    (
        (replace(FOR_TOKENS, preempted=1), replace(FOR_PROMPTS, id=InstanceId("i2"))),
        ", and nobody takes those that make tokens: i1: short of blocks itself; i2: for prompts, too",
    ),
    ((replace(FOR_PROMPTS, id=I1),), ", and there is no other instance that takes requests and makes tokens"),
    (
        (replace(FOR_TOKENS, state=InstanceState.DRAINING),),
        ", and there is no other instance that takes requests and makes tokens",
    ),
]


@pytest.mark.parametrize(("others", "why"), HOMES)
def test_who_runs_on_an_instance_for_prompts_leaves_it_or_is_taken_by_nobody(
    others: tuple[InstanceSnapshot, ...], why: str
) -> None:
    known = (FOR_PROMPTS, *others)
    there = replace(THERE, instance=FOR_PROMPTS, cluster=known, request=replace(REQUEST, needed_blocks=8))
    sentence = f"i0 is for prompts{why}"
    assert why_not_moved(there, PolicyConfig(), []) == sentence
    spared = "; none that makes tokens moves to it, for it is for prompts"
    assert why_instance_keeps_all(FOR_PROMPTS, PolicyConfig(), [], cluster=known) == sentence + spared
    if sum(each.state is InstanceState.RUNNING for each in known) > 1:
        assert why_nothing_moves(cluster(*known), PolicyConfig(), []) == sentence


def test_who_waits_on_an_instance_for_prompts_moves_like_any_other() -> None:
    there = replace(request(state=RequestState.WAITING), instance=FOR_PROMPTS, cluster=(FOR_PROMPTS, FOR_TOKENS))
    assert why_not_moved(there, PolicyConfig(), []).startswith("i0 gives nothing away: its freeness 9")
    running = replace(there, request=REQUEST)
    assert why_not_moved(running, PolicyConfig(migration=False), []) == "nothing moves by itself: --no-migration"


def test_what_a_role_keeps_from_an_instance_is_said() -> None:
    keeps = "i1 gives nothing away: its freeness 9 is not below 3 (--migrate-out-freeness)"
    spared = "it takes prompts only where no other can, for it is for tokens, without --tpot-target-ms"
    assert why_instance_keeps_all(FOR_TOKENS, PolicyConfig(), []) == f"{keeps}; {spared}"
    assert why_instance_keeps_all(IN_TIME, PolicyConfig(), []) == keeps, "it takes what its target leaves time for"


def test_instance_for_prompts_is_free_and_no_target() -> None:
    idle = replace(FOR_PROMPTS, id=I1, to_decode=0, to_decode_blocks=0)
    why = why_nothing_moves(cluster(GIVES, idle), PolicyConfig(), [])
    assert why == (
        "i0 would give a request away, and in the last round could not: i0: those that are free enough are for prompts"
    )


@pytest.mark.parametrize(
    ("policy", "freeness"), [("llumnix", "94 of i0"), ("llumnix-paper", "91 of i0"), ("llumnix-base", "91 of i0")]
)
def test_the_freeness_that_is_said_is_the_one_that_the_policy_goes_by(policy: str, freeness: str) -> None:
    """In the paper's experiments the whole queue is charged."""
    queue = replace(TIGHT, free_blocks=97, running=0, high_running=0, waiting=2, queued_blocks=6, head_of_line_blocks=3)
    cluster = ClusterSnapshot(at=0.0, instances=(queue, replace(queue, id=I1)))
    config = PolicyConfig(policy=policy)
    assert f"the lowest freeness, {freeness}, is not below" in why_nothing_moves(cluster, config, [])
    assert f"freeness {freeness.split()[0]} is not below" in why_instance_keeps_all(queue, config, [])


def test_without_a_scheduler_nothing_moves() -> None:
    why = why_nothing_moves(cluster(GIVES, ROOMY), PolicyConfig(), [], scheduler_answers=False)
    assert why == "the scheduler, which says who gives requests to whom, does not answer"
