"""Where the requests of a draining instance go."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.policy.draining import DrainTerms, place_drained, place_where_cached
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.virtual_usage import migration_freeness
from llumnix.types import InstanceId, InstanceState, RequestId, Role


def load(id: str, free: int, running: int, **facts: object) -> InstanceSnapshot:
    usual = {"at": 0.0, "seq": 1, "total_blocks": 1000, "smallest_running_blocks": 20 if running else 0}
    return InstanceSnapshot(id=InstanceId(id), free_blocks=free, running=running, **{**usual, **facts})  # type: ignore[arg-type]


def freeness(one: InstanceSnapshot) -> float:
    return migration_freeness(one, None)


LEAVING = load("leaving", 800, 10, state=InstanceState.DRAINING)
QUEUE_ONLY = load(
    "leaving", 1000, 0, waiting=2, head_of_line_blocks=50, queued_blocks=100, state=InstanceState.DRAINING
)


def placed(source: InstanceSnapshot, *others: InstanceSnapshot, **facts: object) -> list[tuple[str, int]]:
    terms = DrainTerms(**{"moves": 4, "max_incoming": 4, **facts})  # type: ignore[arg-type]
    return [
        (place.target, place.count)
        for place in place_drained(source, sorted((source, *others), key=freeness, reverse=True), terms)
    ]


@pytest.mark.parametrize(
    ("situation", "source", "others", "facts", "expected"),
    [
        ("all to the one that is by far the freest", LEAVING, [load("a", 900, 2), load("b", 100, 20)], {}, [("a", 4)]),
        ("shared out between equals", LEAVING, [load("a", 900, 10), load("b", 900, 10)], {}, [("a", 2), ("b", 2)]),
        ("a target takes no more than it may", LEAVING, [load("a", 900, 2), load("b", 100, 20)], {"max_incoming": 3},
         [("a", 3), ("b", 1)]),
        ("what comes in already counts", LEAVING, [load("a", 900, 2, incoming=3)], {}, [("a", 1)]),
        ("as much as there is room for", LEAVING, [load("a", 50, 20)], {}, [("a", 2)]),
        ("no room anywhere: the requests stay for now", LEAVING, [load("a", 19, 20)], {}, []),
        ("a queue that waits there comes first", LEAVING,
         [load("a", 50, 20, waiting=1, head_of_line_blocks=40, queued_blocks=40)], {}, []),
        ("only running instances", LEAVING, [load("a", 900, 0, state=InstanceState.DRAINING),
         load("b", 900, 0, state=InstanceState.STARTING)], {}, []),
        ("not where it was refused", LEAVING, [load("a", 900, 0)], {"backing_off": {("leaving", "a")}}, []),
        ("a full instance is better than none", LEAVING, [load("a", 45, 40, high_running=1)],
         {"priority_target_tokens": 1600}, [("a", 2)]),
        ("only a queue is left", QUEUE_ONLY, [load("a", 900, 10)], {"moves": 2}, [("a", 2)]),
        ("who runs goes to one for prompts last", LEAVING,
         [load("p", 900, 0, role=Role.PREFILL), load("d", 100, 10, role=Role.DECODE)], {}, [("d", 4)]),
        ("but there before nowhere", LEAVING,
         [load("p", 900, 2, role=Role.PREFILL), load("d", 30, 20, role=Role.DECODE)], {}, [("d", 1), ("p", 3)]),
        ("a queue goes there as to any other", QUEUE_ONLY,
         [load("p", 900, 0, role=Role.PREFILL), load("d", 100, 10, role=Role.DECODE)], {"moves": 2}, [("p", 2)]),
        ("alone", LEAVING, [], {}, []),
        ("as few as asked", LEAVING, [load("a", 900, 2)], {"moves": 1}, [("a", 1)]),
    ],
)  # fmt: skip
def test_places_when(situation: str, source: InstanceSnapshot, others: Any, facts: Any, expected: object) -> None:
    assert placed(source, *others, **facts) == expected, situation


def test_room_and_freeness_are_those_before_the_first_request_comes() -> None:
    (place,) = place_drained(LEAVING, (load("a", 900, 3),), DrainTerms(moves=3, max_incoming=4))
    assert str(place) == "freeness 300, room for 900 blocks"
    assert place.count == 3


# where a prompt is cached


def named(*others: InstanceSnapshot, where: dict[str, str], **facts: object) -> list[tuple[str, str]]:
    terms = DrainTerms(**{"moves": 4, "max_incoming": 4, **facts})  # type: ignore[arg-type]
    wanted = {RequestId(request): InstanceId(there) for request, there in where.items()}
    return [(str(one.request), one.target) for one in place_where_cached(LEAVING, wanted, others, terms)]


FREEST, NEARLY, BUSY = load("freest", 800, 4), load("nearly", 800, 5), load("busy", 800, 6)
"""Freeness 200, 160 and 133."""


def test_request_goes_where_its_prompt_is_cached_if_that_is_about_as_free_as_the_freest() -> None:
    assert named(FREEST, NEARLY, where={"r": "nearly"}) == [("r", "nearly")]
    assert named(FREEST, NEARLY, BUSY, where={"r": "busy", "s": "freest"}) == [("s", "freest")]
    assert named(NEARLY, BUSY, where={"r": "busy"}) == [("r", "busy")]


def test_each_that_goes_there_makes_it_less_free_for_the_next_one() -> None:
    assert named(FREEST, NEARLY, where=dict.fromkeys("rstu", "nearly")) == [("r", "nearly")]
    alone = dict.fromkeys("rstuv", "nearly")
    assert [request for request, _ in named(NEARLY, where=alone)] == [*"rstu"], "as many as it may take at once"
    assert [request for request, _ in named(NEARLY, where=alone, moves=2)] == [*"rs"]
    assert [request for request, _ in named(load("nearly", 50, 5), where=alone)] == [*"rs"], "as many as there is room"


@pytest.mark.parametrize(
    ("situation", "target", "facts"),
    [
        ("it is gone", load("other", 800, 4), {}),
        ("it drains, too", load("t", 800, 4, state=InstanceState.DRAINING), {}),
        ("it has no room", load("t", 19, 4), {}),
        ("it takes as many as it may", load("t", 800, 4, incoming=4), {}),
        ("it refused a moment ago", load("t", 800, 4), {"backing_off": {("leaving", "t")}}),
        ("it is for prompts", load("t", 800, 4, role=Role.PREFILL), {}),
    ],
)
def test_request_does_not_go_where_its_prompt_is_cached_when(
    situation: str, target: InstanceSnapshot, facts: dict[str, object]
) -> None:
    assert named(target, where={"r": "t"}, **facts) == [], situation


def test_short_of_blocks_themselves_the_least_short_is_the_freest() -> None:
    short = {"waiting": 1, "head_of_line_blocks": 500}
    one, other = load("one", 400, 4, **short), load("other", 300, 4, **short)
    assert (freeness(one), freeness(other)) == (-100, -200)
    assert named(one, other, where={"r": "other", "s": "one"}) == [("s", "one")]


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 30), st.integers(0, 5)), max_size=8), st.integers(1, 9))
def test_never_more_than_asked_and_never_over_a_limit(others: list[tuple[int, int, int]], moves: int) -> None:
    instances = [load(f"i{k}", free, running, incoming=coming) for k, (free, running, coming) in enumerate(others)]
    incoming = {instance.id: instance.incoming for instance in instances}
    places = placed(LEAVING, *instances, moves=moves)
    assert sum(count for _, count in places) <= moves
    assert all(incoming[target] + count <= 4 for target, count in places)  # type: ignore[index]
