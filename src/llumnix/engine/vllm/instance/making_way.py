"""Running requests of normal priority make way for one of high priority that waits (`policy/displacing.py`)."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from llumnix.policy.displacing import Occupant, displaced
from llumnix.types import is_high


def make_way(scheduler: Scheduler, head: Request, held_by: Callable[[int], int], has_slot: bool) -> None:
    """Preempts so that the first of the queue can start in this step, if it is important and that is enough.
    `held_by`: blocks that a request of so many tokens holds; `has_slot`: the batch has a place for one more.

    Relies on `Scheduler._preempt_request` naming the request in the next `SchedulerOutput.preempted_req_ids`, as
    it does when vLLM preempts all to reset its prefix cache.
    """
    blocked = scheduler._is_blocked_waiting_status(head.status) or head.num_stale_output_tokens
    if not is_high(head.priority) or blocked:
        return
    manager = scheduler.kv_cache_manager
    needed = held_by(head.num_tokens) + manager.watermark_blocks + scheduler._inflight_prefill_reserved_blocks()
    missing = needed - manager.block_pool.get_num_free_blocks()
    if not has_slot:
        missing = max(missing, 1)
    if missing <= 0:
        return
    normal = [
        each
        for each in scheduler.running
        if not is_high(each.priority) and scheduler._request_blocks_can_be_freed(each)
    ]
    occupants = [Occupant(each.priority, each.arrival_time, held_by(each.num_computed_tokens)) for each in normal]
    for position in displaced(occupants, missing):
        scheduler.running.remove(normal[position])
        scheduler._preempt_request(normal[position], monotonic())
