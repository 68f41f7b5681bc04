"""Between those that run and those that wait. Running requests make way, by the way in which vLLM itself preempts:
those of normal priority for one of high priority (`policy/displacing.py`), and one for another that has stood still for
long (`control/changes_of_turn.py`). Whoever else waits leaves those that run room to grow (`policy/waiting_order.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, time

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from llumnix.control.changes_of_turn import ChangesOfTurn, Runner, may_pass
from llumnix.engine.vllm.instance.block_counts import BlockCounts
from llumnix.engine.vllm.instance.counted_queue import CountedQueue
from llumnix.engine.vllm.instance.growth import growth_blocks
from llumnix.engine.vllm.instance.kept_places import KeptPlaces
from llumnix.engine.vllm.instance.needs import blocks_to_start
from llumnix.engine.vllm.instance.state import makes_tokens, passport_of
from llumnix.engine.vllm.instance.turn_queue import TurnQueue
from llumnix.policy.displacing import Occupant, displaced
from llumnix.policy.snapshot import StepCost
from llumnix.policy.waiting_order import GROWTH_STEPS
from llumnix.types import is_high


class WhoMakesWay:
    """In one scheduler, whose queue is in the order of `turns`, if that is by priority.

    Relies on `Scheduler._preempt_request` naming the request in the next `SchedulerOutput.preempted_req_ids`, as
    it does when vLLM preempts all to reset its prefix cache.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        waiting: CountedQueue,
        turns: TurnQueue,
        counts: BlockCounts,
        places: KeptPlaces,
        cost: Callable[[], StepCost | None],
    ) -> None:
        """`waiting`, `counts` and `places` are the scheduler's. `cost`: of its steps, once that is known."""
        self._scheduler = scheduler
        self._waiting = waiting
        self._turns = turns
        self._counts = counts
        self._places = places
        self._cost = cost
        self._changes = ChangesOfTurn()

    def before_step(self, for_high: bool, has_slot: bool) -> None:
        """Somebody waits. `has_slot`: the batch has a place for one more. In a pause nobody from the queue starts, so
        nobody makes way."""
        if self._scheduler.pause_state != PauseState.UNPAUSED:
            return
        if for_high:
            self._for_high(has_slot)
        if self._turns.small_first:
            self._for_stopped(has_slot)

    def sparing(self) -> Callable[[Request], int]:
        """For a look at the queue, or a step: blocks that stay free beside the first of the queue when it starts, for
        those that ran when the first one was looked at. None where it is important, or called."""
        growth: int | None = None

        def spared_blocks(first: Request) -> int:
            nonlocal growth
            if not self._turns.small_first:
                return 0
            if growth is None:
                growth = growth_blocks(self._scheduler.running, self._counts, GROWTH_STEPS)
            return 0 if first is self._turns.called or is_high(first.priority) else growth

        return spared_blocks

    def _for_high(self, has_slot: bool) -> None:
        """The first of the queue can start in this step, if it is important and that is enough."""
        scheduler, head = self._scheduler, self._scheduler.waiting.peek_request()
        if not is_high(head.priority) or self._is_blocked(head):
            return
        missing = self._missing_blocks(head, has_slot)
        if missing <= 0:
            return
        normal = [
            each
            for each in scheduler.running
            if not is_high(each.priority) and scheduler._request_blocks_can_be_freed(each)
        ]
        occupants = [Occupant(each.priority, each.arrival_time, self._freed_by(each)) for each in normal]
        for position in displaced(occupants, missing):
            self._preempt(normal[position])

    def _for_stopped(self, has_slot: bool) -> None:
        """One that has made no token for long goes first, and can start in this step, if its turn has come: of those
        that can, the one that has for longest."""
        now_s = monotonic()
        for since_s, stopped in self._turns.longest_stopped():
            if self._turns.called is not None or self._changes.wait_s(time() - since_s, now_s):
                return
            self._call(stopped, has_slot, now_s)

    def _call(self, stopped: Request, has_slot: bool, now_s: float) -> None:
        """If it can start by that."""
        scheduler, turns = self._scheduler, self._turns
        others_blocks = self._waiting.blocks - self._counts.to_start(stopped.num_tokens)
        if not may_pass(others_blocks, scheduler.kv_cache_manager.block_pool.num_gpu_blocks):
            return
        if turns.peek_request().priority < stopped.priority or self._is_blocked(stopped):
            return
        missing = self._missing_blocks(stopped, has_slot)
        if missing <= 0:
            turns.call(stopped)
            return
        able = [
            each for each in scheduler.running if makes_tokens(each) and scheduler._request_blocks_can_be_freed(each)
        ]
        runners = [self._runner(each, now_s) for each in able]
        place = self._changes.gives_way(runners, missing, stopped.priority, self._cost(), now_s)
        if place is not None:
            turns.call(stopped)
            self._preempt(able[place])

    def _preempt(self, request: Request) -> None:
        self._scheduler.running.remove(request)
        self._scheduler._preempt_request(request, monotonic(), self._scheduler.requires_kv_delivery)

    def _is_blocked(self, request: Request) -> bool:
        """It waits for something else than memory, or a place in the batch."""
        scheduler = self._scheduler
        stale = request.num_stale_output_tokens > 0 and not request.drop_stale_output
        blocked = stale or scheduler._is_blocked_waiting_status(request.status)
        return blocked or not self._places.has_adapter_place(request)

    def _missing_blocks(self, request: Request, has_slot: bool) -> int:
        """That a request from the queue lacks to start in the next step, in which those that run come first; at least
        one where the batch has no place for it."""
        scheduler, manager = self._scheduler, self._scheduler.kv_cache_manager
        needed = blocks_to_start(scheduler, request) + manager.watermark_blocks
        needed += growth_blocks(scheduler.running, self._counts, steps=1)
        missing = needed - manager.block_pool.get_num_free_blocks()
        return missing if has_slot else max(missing, 1)

    def _freed_by(self, request: Request) -> int:
        return self._counts.freed_by(request.request_id)

    def _runner(self, request: Request, now_s: float) -> Runner:
        ran_s = now_s - passport_of(request).began_s
        return Runner(request.priority, request.arrival_time, ran_s, self._freed_by(request), request.num_tokens)
