"""Which requests are given away."""

from __future__ import annotations

import pytest

from llumnix.policy.snapshot import RequestSnapshot
from llumnix.policy.victim import CHEAPEST, LAST_COME, LAST_COME_OF_ALL, VictimQuery, VictimRule, Wanted, choose_victims
from llumnix.types import HIGH, NORMAL, RequestId, RequestState


def request(id: str, **facts: object) -> RequestSnapshot:
    blocks = facts.pop("blocks", 10)
    waiting = facts.get("state") is RequestState.WAITING
    usual = {
        "id": RequestId(id),
        "state": RequestState.RUNNING,
        "priority": NORMAL,
        "arrival_s": 1.0,
        "output_tokens": 5,
        "held_blocks": 0 if waiting else blocks,
        "needed_blocks": blocks,
        "length_blocks": blocks,
    }
    return RequestSnapshot(**{**usual, **facts})  # type: ignore[arg-type]


def query(**facts: object) -> VictimQuery:
    draining, at = facts.pop("draining", False), facts.pop("at", 10.0)
    wanted = Wanted(**{"room_blocks": 100, **facts})  # type: ignore[arg-type]
    return VictimQuery(at=at, cooldown_s=1.0, wanted=wanted, draining=bool(draining))  # type: ignore[arg-type]


LONG = request("long", blocks=40, arrival_s=4.0)
SHORT = request("short", blocks=5, arrival_s=2.0)
QUEUED = request("queued", blocks=30, arrival_s=3.0, state=RequestState.WAITING, output_tokens=0)
QUEUED_LATER = request("queued-later", blocks=3, arrival_s=5.0, state=RequestState.WAITING, output_tokens=0)
LOW_ONE = request("low", blocks=30, arrival_s=2.0, priority=2)
HIGH_ONE = request("high", blocks=1, arrival_s=9.0, priority=HIGH)
HIGH_QUEUED = request(
    "high-queued", blocks=9, arrival_s=9.0, priority=HIGH, state=RequestState.WAITING, output_tokens=0
)
WITH_ADAPTER = request("with-adapter", blocks=4, arrival_s=1.0, has_adapter=True)
PREFILLING = request("prefilling", blocks=2, arrival_s=8.0, output_tokens=0)
PINNED = request("pinned", blocks=1, arrival_s=9.0, why_pinned="pooling request")
MOVING = request("moving", blocks=1, arrival_s=9.0, state=RequestState.MIGRATING)
JUST_MOVED = request("just-moved", blocks=1, arrival_s=9.0, moved_s=9.5)
ALL = [LONG, SHORT, QUEUED, QUEUED_LATER, HIGH_ONE, PREFILLING, PINNED, MOVING, JUST_MOVED]


@pytest.mark.parametrize(
    ("situation", "rule", "requests", "asked", "victims"),
    [
        ("ours: a queued one has nothing to copy", CHEAPEST, [LONG, SHORT, QUEUED], query(), ["queued"]),
        ("ours: the first of the queue", CHEAPEST, [QUEUED_LATER, QUEUED], query(), ["queued"]),
        ("ours: the next of the queue if one is too long", CHEAPEST, ALL, query(room_blocks=9), ["queued-later"]),
        ("ours: the shortest running one", CHEAPEST, [LONG, SHORT], query(), ["short"]),
        ("an adapter has a place", CHEAPEST, [WITH_ADAPTER, SHORT], query(), ["with-adapter"]),
        ("it has none there", CHEAPEST, [WITH_ADAPTER, SHORT], query(without_adapter=True), ["short"]),
        ("nor when all are to leave", CHEAPEST, [WITH_ADAPTER], query(without_adapter=True, draining=True), []),
        ("ours: a high one keeps its headroom", CHEAPEST, [HIGH_ONE], query(), []),
        ("ours: a high one in the queue may go", CHEAPEST, [HIGH_QUEUED, SHORT], query(), ["high-queued"]),
        ("paper: a high one stays while nobody waits", LAST_COME, [HIGH_ONE], query(), []),
        ("paper: a high one goes if somebody waits and no other can", LAST_COME, [HIGH_ONE, QUEUED], query(), ["high"]),
        ("paper: the last that came and decodes", LAST_COME, ALL, query(), ["long"]),
        ("base: priorities do not count", LAST_COME_OF_ALL, ALL, query(), ["high"]),
        ("a slow one: the important ones first", CHEAPEST, ALL, query(count=2, by_pace=True), ["high", "prefilling"]),
        ("a slow one: who waits makes no tokens", CHEAPEST, [QUEUED], query(by_pace=True), []),
        ("a slow one: nor who moved a moment ago", CHEAPEST, [JUST_MOVED], query(by_pace=True), []),
        ("a request that cannot move", CHEAPEST, [PINNED], query(), []),
        ("a request on its way", CHEAPEST, [MOVING], query(), []),
        ("a request that moved half a second ago", CHEAPEST, [JUST_MOVED], query(), []),
        ("the cooldown is over", CHEAPEST, [JUST_MOVED], query(at=10.5), ["just-moved"]),
        ("no room at the target", CHEAPEST, [SHORT, LONG], query(room_blocks=4), []),
        ("no requests", CHEAPEST, [], query(), []),
        ("several, as long as they fit together", CHEAPEST, [LONG, SHORT, QUEUED], query(count=3, room_blocks=60),
         ["queued", "short"]),
        ("draining: high ones and fresh ones leave, too", CHEAPEST, [HIGH_ONE, JUST_MOVED, PINNED, MOVING],
         query(count=9, draining=True), ["high", "just-moved"]),
        ("draining by the paper's rule: the prefilling ones leave, too", LAST_COME, [PREFILLING, QUEUED],
         query(count=9, draining=True), ["queued", "prefilling"]),
        ("draining: the important first, then the queued, then who stays longest", CHEAPEST,
         [HIGH_ONE, LOW_ONE, QUEUED, request("soon", remaining_tokens=3), request("late", remaining_tokens=99)],
         query(count=9, draining=True), ["high", "queued", "late", "soon", "low"]),
        ("blocks run out: a queued one holds none", CHEAPEST, [LONG, SHORT, QUEUED], query(urgent=True), ["short"]),
        ("blocks run out: only queued ones", CHEAPEST, [QUEUED], query(urgent=True), []),
        ("room for the queue: the smallest that will do", CHEAPEST, [SHORT, LONG, request("fitting", blocks=20)],
         query(at_least_blocks=15), ["fitting"]),
        ("room for the queue: none alone is large enough", CHEAPEST, [SHORT, QUEUED], query(at_least_blocks=15), []),
        ("room for the queue: blocks that others share are not freed", CHEAPEST, [request("shares", held_blocks=10.0)],
         query(at_least_blocks=15), []),
        ("several classes: the least important first", CHEAPEST, [SHORT, LONG, LOW_ONE], query(), ["low"]),
        ("equals: by id", CHEAPEST, [request("b"), request("a")], query(), ["a"]),
    ],
)  # fmt: skip
def test_victims_when(
    situation: str, rule: VictimRule, requests: list[RequestSnapshot], asked: VictimQuery, victims: list[str]
) -> None:
    assert list(choose_victims(rule, requests, asked).victims) == victims, situation
    assert list(choose_victims(rule, requests[::-1], asked).victims) == victims, f"{situation}, in any order"


def test_choice_says_why_others_stay() -> None:
    choice = choose_victims(CHEAPEST, [PINNED, MOVING, JUST_MOVED, HIGH_ONE, LONG], query(room_blocks=4))
    passed = "1 pinned, 1 already moving, 1 moved a moment ago, 1 of high priority, 1 do not fit"
    assert choice.why_no_more == passed
    assert choose_victims(CHEAPEST, [], query()).why_no_more == "no requests"
    assert choose_victims(CHEAPEST, [SHORT], query()).why_no_more == "no other requests"


def test_instance_for_prompts_gives_all_that_run_whoever_decodes_first() -> None:
    just_come = request("just-come", arrival_s=9.5, moved_s=9.9)
    ending = request("ending", remaining_tokens=1)
    asked = query(to_decode=True, count=9)
    choice = choose_victims(CHEAPEST, (QUEUED, PREFILLING, LONG, HIGH_ONE, ending, just_come, PINNED), asked)
    assert choice.victims == ("long", "high", "just-come", "prefilling")
    assert choice.passed_over == (
        ("waiting, not computed yet", 1),
        ("end with the next token", 1),
        ("pinned", 1),
    )
