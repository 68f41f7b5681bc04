"""What it costs that every front end remembers what happens to its requests, and why.

    python benchmarks/journal_cost.py

On one core: what a dispatch costs more than one that is forgotten, and beside it; a whole story, of a request that was
placed, moved once and ended; and the memory of ended stories and of a full journal. The decision itself is the default
policy's, and names up to five instances either way. Timings are of the thread, medians of rounds that take turns.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable

from frame.verdict import Figure, at_most, conclude

from llumnix.config import PolicyConfig
from llumnix.control.dispatcher import Dispatcher
from llumnix.control.orders import MoveCause, MoveId, MoveOrder, MoveOutcome
from llumnix.engine.vllm.front_end.client_ids import client_visible_id
from llumnix.journal.journal import KEPT, Journal
from llumnix.journal.stories import ENDED_KEPT, Stories
from llumnix.policy.dispatch import DispatchReason, DispatchRequest
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import NORMAL, InstanceId, RequestId

SIZES = (2, 16, 256)
DISPATCHES = 2000
ROUNDS = 11
GOAL_DISPATCH_US = 6
GOAL_STORY_BYTES = 1024


def dispatcher(instances: int) -> Dispatcher:
    made, rng = Dispatcher(PolicyConfig()), random.Random(instances)
    for number in range(instances):
        load = {"total_blocks": 2000, "free_blocks": rng.randint(1000, 2000), "running": rng.randint(5, 60)}
        made.on_report(InstanceSnapshot(id=InstanceId(f"i{number}"), at=0.0, seq=1, **load))  # type: ignore[arg-type]
    return made


def ids(count: int) -> list[str]:
    """As vLLM makes them."""
    rng = random.Random(count)
    return [f"cmpl-{rng.getrandbits(128):032x}-0-{rng.getrandbits(32):08x}" for _ in range(count)]


def time_dispatches(instances: int, then: Callable[[str, DispatchReason], None]) -> float:
    """µs of this thread for each, `then` included, and that it is not booked in the end."""
    made = dispatcher(instances)
    requests = [(name, DispatchRequest(RequestId(name), 100, NORMAL)) for name in ids(DISPATCHES)]
    began = time.thread_time_ns()
    for name, request in requests:
        decision = made.dispatch(request)
        assert decision is not None
        then(name, decision.reason)
        made.forget(request.id, decision.instance)
    return (time.thread_time_ns() - began) / DISPATCHES / 1e3


def told(stories: Stories) -> Callable[[str, DispatchReason], None]:
    """As a front end does it."""

    def tell(name: str, reason: DispatchReason) -> None:
        now = time.monotonic()
        stories.began(now, client_visible_id(name[:-9]), name, 100).dispatched(now, reason)

    return tell


def compare_dispatches(instances: int) -> tuple[float, float]:
    """µs without and with what is remembered."""
    without, with_it = [], []
    for _ in range(ROUNDS):
        without.append(time_dispatches(instances, lambda name, reason: None))
        with_it.append(time_dispatches(instances, told(Stories(Journal("f0")))))
    return statistics.median(without), statistics.median(with_it)


def live(stories: Stories, names: list[str]) -> None:
    """Each is placed, moves once and ends."""
    made = dispatcher(16)
    for number, name in enumerate(names):
        request = DispatchRequest(RequestId(name), 100, NORMAL)
        decision = made.dispatch(request)
        assert decision is not None
        made.forget(request.id, decision.instance)
        order = MoveOrder(
            move_id=MoveId(f"scheduler-4711-{number}"), target=InstanceId("i1"), cause=BALANCE, reason=REASON
        )
        story = stories.began(0.001, client_visible_id(name[:-9]), name, 812)
        story.dispatched(0.002, decision.reason)
        story.scheduled(0.041)
        story.token(0.251, 64)
        story.moved(4.2, MoveOutcome(order=order, source=decision.instance, request=request.id), 0.007)
        story.ended(9.36, "length", 391)
        stories.over(story)


BALANCE = MoveCause.BALANCE
REASON = "freeness 1.784 against 21.5; 3.412 and 9.731 after the move"


def story_us() -> float:
    """For all of a request, its decision included."""
    names = ids(DISPATCHES)
    began = time.thread_time_ns()
    live(Stories(Journal("f0")), names)
    return (time.thread_time_ns() - began) / DISPATCHES / 1e3


def memory() -> tuple[float, float]:
    """Bytes for each ended story, and for each entry of a full journal, when there are as many as may be."""
    names = ids(ENDED_KEPT)
    tracemalloc.start()
    stories = Stories(Journal("f0", keep=0))
    live(stories, names)
    story_bytes = tracemalloc.get_traced_memory()[0] / stories.tell("", 0.0).kept
    tracemalloc.stop()
    tracemalloc.start()
    journal = Journal("f0")
    live(Stories(journal), names[: KEPT // 4])
    entry_bytes = tracemalloc.get_traced_memory()[0] / KEPT
    tracemalloc.stop()
    return story_bytes, entry_bytes


def main() -> int:
    figures: list[Figure] = []
    for size in SIZES:
        without_us, with_us = compare_dispatches(size)
        print(f"dispatch, {size} instances: {without_us:.1f} µs without, {with_us:.1f} µs with what is remembered")
        goal = at_most(GOAL_DISPATCH_US)
        figures.append(Figure(f"more per dispatch, {size} instances", with_us - without_us, goal, "µs"))
    figures.append(
        Figure("a whole story, its dispatch included", statistics.median(story_us() for _ in range(ROUNDS)), unit="µs")
    )
    story_bytes, entry_bytes = memory()
    figures.append(Figure("memory of an ended story", story_bytes, at_most(GOAL_STORY_BYTES), "bytes"))
    figures.append(Figure(f"memory of all, {ENDED_KEPT:,} stories", ENDED_KEPT * story_bytes / 2**20, unit="MiB"))
    figures.append(Figure(f"memory of a full journal, {KEPT:,} entries", KEPT * entry_bytes / 2**20, unit="MiB"))
    return conclude(*figures)


if __name__ == "__main__":
    sys.exit(main())
