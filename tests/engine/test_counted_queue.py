"""vLLM's queue, counted: its sums are what a walk over it finds, and its front is what sorting it finds."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("vllm")

from hypothesis import given, settings
from hypothesis import strategies as st
from small_engine import BLOCK_TOKENS, BLOCKS, SmallEngine
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy, create_request_queue
from vllm.v1.request import Request, RequestStatus

from llumnix.control import changes_of_turn
from llumnix.control.changes_of_turn import STOPPED_TRIED
from llumnix.engine.vllm.instance.counted_queue import CountedQueue
from llumnix.engine.vllm.instance.snapshot import request_snapshots
from llumnix.engine.vllm.instance.state import Passport, passport_of
from llumnix.engine.vllm.instance.step_watch import StepWatch
from llumnix.engine.vllm.instance.turn_queue import TurnQueue
from llumnix.policy.snapshot import StepCost
from llumnix.policy.victim import QUEUE_SHOWN
from llumnix.types import RequestId, is_high


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def made(number: int, rng: random.Random) -> Request:
    request = Request(
        f"r{number}",
        [1] * rng.randint(1, 200),
        SamplingParams(max_tokens=10),
        None,
        arrival_time=float(rng.randint(0, 5)),
        priority=rng.randint(-1, 1),
    )
    request.status = rng.choice([RequestStatus.WAITING, RequestStatus.PREEMPTED])
    passport = Passport(original=None)  # type: ignore[arg-type]
    request._llumnix_passport = passport  # type: ignore[attr-defined]
    if request.status == RequestStatus.PREEMPTED and rng.random() < 0.7:
        request.append_output_token_ids([7])
        passport.preempted_s = float(rng.randint(0, 5))
    return request


def walked(queue: CountedQueue) -> tuple[int, int, int, int]:
    requests = list(queue)
    return (
        len(requests),
        sum(blocks_for(request.num_tokens) for request in requests),
        sum(request.status == RequestStatus.PREEMPTED for request in requests),
        sum(is_high(request.priority) for request in requests),
    )


def counted(queue: CountedQueue) -> tuple[int, int, int, int]:
    return len(queue), queue.blocks, queue.preempted, queue.high


def change(queue: CountedQueue, what: str, number: int, rng: random.Random) -> None:
    some = rng.sample(list(queue), min(len(queue), rng.randint(0, 3)))
    match what:
        case "add":
            queue.add_request(made(number, rng))
        case "prepend":
            queue.prepend_request(made(number, rng))
        case "skip and put back" if queue:
            skipped = [queue.pop_request() for _ in range(rng.randint(1, len(queue)))]
            queue.prepend_requests(skipped)
        case "pop" if queue:
            assert queue.peek_request() is queue.pop_request()
        case "remove" if some:
            queue.remove_request(some[0])
        case "remove some":
            queue.remove_requests([*some, made(number, rng)])  # vLLM asks both of its queues to remove what one has


CHANGES = ("add", "add", "prepend", "skip and put back", "pop", "remove", "remove some")


QUEUES: dict[str, Callable[[], RequestQueue]] = {
    "as they came": lambda: create_request_queue(SchedulingPolicy.FCFS),
    "by priority": lambda: TurnQueue(blocks_for, BLOCKS),
    "small ones first": lambda: small_first(TurnQueue(blocks_for, BLOCKS)),
}


def small_first(queue: TurnQueue) -> TurnQueue:
    queue.small_first = True
    return queue


@pytest.mark.parametrize("kind", QUEUES)
@settings(max_examples=60)
@given(changes=st.lists(st.sampled_from(CHANGES), max_size=60), seed=st.integers(0, 2**32))
def test_sums_and_front_are_what_a_walk_finds(kind: str, changes: list[str], seed: int) -> None:
    rng = random.Random(seed)
    queue = CountedQueue(QUEUES[kind](), blocks_for, lambda _: 0)
    for number, what in enumerate(changes):
        change(queue, what, number, rng)
        assert counted(queue) == walked(queue)
        for front in (0, 1, 5, 100):
            assert queue.first(front) == list(queue)[:front]


@settings(max_examples=60)
@given(changes=st.lists(st.sampled_from(CHANGES), max_size=60), seed=st.integers(0, 2**32))
def test_order_by_priority_is_that_of_vllm(changes: list[str], seed: int) -> None:
    ours, theirs = TurnQueue(blocks_for, BLOCKS), create_request_queue(SchedulingPolicy.PRIORITY)
    for queue in (ours, theirs):
        rng, counted_queue = random.Random(seed), CountedQueue(queue, blocks_for, lambda _: 0)
        for number, what in enumerate(changes):
            change(counted_queue, what, number, rng)
    assert [request.request_id for request in ours] == [request.request_id for request in theirs]


@settings(max_examples=60)
@given(changes=st.lists(st.sampled_from([*CHANGES, "call"]), max_size=60), seed=st.integers(0, 2**32))
def test_who_has_stood_still_for_longest_is_what_a_walk_finds(changes: list[str], seed: int) -> None:
    rng, turns = random.Random(seed), small_first(TurnQueue(blocks_for, BLOCKS))
    queue = CountedQueue(turns, blocks_for, lambda _: 0)
    for number, what in enumerate(changes):
        if what == "call" and turns.called is None and (longest := turns.longest_stopped()):
            (_, first), *_ = longest
            turns.call(first)
            assert turns.called is first
            assert all(each.priority < first.priority for each in before(first, turns))
        elif what != "call":
            change(queue, what, number, rng)
        stopped = {each.request_id: passport_of(each).preempted_s or 0.0 for each in turns if each.num_output_tokens}
        longest = turns.longest_stopped()
        assert [since for since, _ in longest] == sorted(stopped.values())[:STOPPED_TRIED]
        assert all(since == stopped[each.request_id] for since, each in longest)
        assert turns.called is None or turns.called in list(turns)
        assert counted(queue) == walked(queue)


def before(request: Request, queue: TurnQueue) -> list[Request]:
    order = list(queue)
    return order[: order.index(request)]


def test_who_has_its_prompt_cached_goes_before_one_that_needs_as_much_and_came_a_little_earlier() -> None:
    """But not who will find it cached once another one that waits is computed."""
    queue = small_first(TurnQueue(blocks_for, BLOCKS))
    for name, at_s, cached, expected in (("earlier", 0.0, 0, 0), ("follows", 1.0, 0, 149), ("later", 2.0, 149, 149)):
        request = Request(name, [1] * 150, SamplingParams(max_tokens=10), None, arrival_time=at_s)
        request._llumnix_passport = Passport(  # type: ignore[attr-defined]
            original=None,  # type: ignore[arg-type]
            cached_tokens=cached,
            expected_hit_tokens=expected,
        )
        queue.add_request(request)
    assert [request.request_id for request in queue] == ["later", "earlier", "follows"]


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_sums_stay_right_while_vllm_schedules_preempts_and_aborts_and_requests_are_lent(
    seed: int, turns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, rng = SmallEngine(), random.Random(seed)
    scheduler = engine.scheduler
    scheduler.makes_way, scheduler.turns.small_first = True, turns
    monkeypatch.setattr(changes_of_turn, "LONGEST_PAUSE_S", 0.0)
    monkeypatch.setattr(changes_of_turn, "LEAST_TURN_S", 0.0)
    monkeypatch.setattr(
        StepWatch, "cost", StepCost(fixed_ms=20.0, prefill_token_us=0.0, request_us=0.0, context_token_us=0.0)
    )
    lent: list[Request] = []
    try:
        for number in range(150):
            engine.add(f"r{number}", rng.randint(-1, 1), rng.randint(1, 60), rng.randint(1, 40))
            if rng.random() < 0.1:
                scheduler.finish_requests(rng.choice(list(scheduler.requests)), RequestStatus.FINISHED_ABORTED)
            if lent:
                request = lent.pop()
                if request.request_id in scheduler.requests:
                    scheduler.take_back(request)
            elif rng.random() < 0.5 and scheduler.requests:
                lent = [rng.choice(list(scheduler.requests.values()))]
                scheduler.lend(lent[0])
            engine.step()
            assert counted(scheduler.waiting) == walked(scheduler.waiting)
            assert all(request.num_computed_tokens == 0 for request in scheduler.waiting)
        assert engine.preempted, "nobody was preempted"
    finally:
        engine.close()


def test_choice_of_a_victim_is_shown_the_batch_and_the_front_of_the_queue() -> None:
    engine = SmallEngine()
    try:
        for number in range(10 * QUEUE_SHOWN):
            engine.add(f"r{number}", 0, 2 * BLOCK_TOKENS)
        engine.step()
        shown: Any = [request.id for request in request_snapshots(engine.scheduler, "")]
        assert shown == [f"r{number}" for number in range(len(engine.running) + QUEUE_SHOWN)]
        named = request_snapshots(engine.scheduler, "", RequestId("r600"))
        assert [request.id for request in named] == ["r600"], "whoever is named is shown, wherever it stands"
    finally:
        engine.close()
