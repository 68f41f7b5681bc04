"""vLLM's scheduler, able to lend a request to a migration: take it out of the batch, put it back, adopt one.

Nothing of vLLM's scheduling is replaced. Before each step, though, high-priority requests may take the place of normal
ones, and who has stood still for long that of another (making_way.py), by the way in which vLLM itself preempts.

An adopted request resumes through vLLM's own path for requests that hold computed tokens while they wait
(`Scheduler.kv_holding_waiting`), so the stock `schedule()` and both model runners treat it as one that was preempted
here earlier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from llumnix.config import PolicyConfig
from llumnix.engine.vllm.instance.block_counts import BlockCounts
from llumnix.engine.vllm.instance.block_tables import BlockTables
from llumnix.engine.vllm.instance.counted_queue import CountedQueue
from llumnix.engine.vllm.instance.kept_places import KeptPlaces
from llumnix.engine.vllm.instance.last_steps import LastSteps
from llumnix.engine.vllm.instance.making_way import WhoMakesWay
from llumnix.engine.vllm.instance.needs import wait_for_a_step
from llumnix.engine.vllm.instance.prefixes import Prefixes
from llumnix.engine.vllm.instance.state import arrivals_first, expected_hit_tokens, waits_again, waits_on
from llumnix.engine.vllm.instance.step_limits import StepLimits
from llumnix.engine.vllm.instance.step_watch import StepWatch, load_of
from llumnix.engine.vllm.instance.steps import StepsInFlight, blocks_beside
from llumnix.engine.vllm.instance.thrown_away import ThrownAway
from llumnix.engine.vllm.instance.turn_queue import TurnQueue, in_turn
from llumnix.engine.vllm.versions import not_zeroed
from llumnix.policy.catalogue import find_policy
from llumnix.types import RequestId

if TYPE_CHECKING:
    _Base = Scheduler
else:
    _Base = object

_SPARE_BLOCKS = 1  # that stay free beyond every reservation, so that the next step of the batch here fits


class MigrationSupport(_Base):
    """Mixed into both of vLLM's schedulers. Called on the engine's main thread, between steps only."""

    waiting: CountedQueue

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tables = BlockTables(self.kv_cache_manager, self.block_size)
        self.block_tokens = self.tables.block_tokens
        """Of a block in all that is said here; vLLM's `block_size` may be as long as the window."""
        self.counts = BlockCounts(self.kv_cache_manager, self.block_tokens, self.tables.state_blocks)
        self.turns = TurnQueue(self.counts.to_start, self.kv_cache_manager.block_pool.num_gpu_blocks)
        self.waiting = CountedQueue(in_turn(self.waiting, self.turns), self.counts.to_start, expected_hit_tokens)
        self.places = KeptPlaces(self)
        self.makes_way = False  # running requests of normal priority do, for one of high priority that waits
        self.steps = StepsInFlight(self.num_lookahead_tokens > 0, max(0, self.num_prefill_lookahead - 1))
        # V2's workers have the drafts themselves, and use none where none is asked for; V1's want as many from each.
        no_drafts = [] if self.use_v2_model_runner else [-1] * self.num_spec_tokens
        self.last_steps = LastSteps(self.tables.states.for_drafts > 0, no_drafts, self._take_out)
        self.watch = StepWatch()
        self.limits = StepLimits(self, lambda: self.watch.cost)
        self.way = WhoMakesWay(self, self.waiting, self.turns, self.counts, self.places, lambda: self.watch.cost)
        self.prefixes: Prefixes | None = None
        """If the front ends want to know what the prefix cache holds."""
        self.spare_tokens = max(self.block_tokens, 1 + self.num_spec_tokens + self.num_lookahead_tokens)
        """What a request that has just come takes in its first step at most: a block, or more for its drafts."""
        self.preemptions = 0
        self.thrown_away = ThrownAway()
        self.ended: list[tuple[RequestId, str]] = []
        """Requests that ended here since the driver looked last, and why."""
        self.on_begun: Callable[[list[str]], None] = lambda requests: None
        """Told whose computation begins with the step that was just planned."""

    def obey(self, config: PolicyConfig) -> None:
        """From the next step on."""
        policy = find_policy(config.policy)
        by_priority = self.policy == SchedulingPolicy.PRIORITY
        self.makes_way = config.displace and by_priority and policy.priorities
        self.turns.small_first = by_priority and policy.small_first

    # -- while a request decodes at the source

    def blocks_for(self, tokens: int) -> int:
        return cdiv(tokens, self.block_tokens)

    def is_queued(self, request: Request) -> bool:
        """It waits, and not only for its next step, as one does that has come with its KV."""
        return request.status != RequestStatus.RUNNING and not self._awaits_step(request)

    def _awaits_step(self, request: Request) -> bool:
        return self._holds_kv_blocks(request) and not self._is_blocked_waiting_status(request.status)

    def is_lent(self, request: Request) -> bool:
        return request.request_id in self.places.lent

    def lend(self, request: Request) -> None:
        """Takes the request out of the batch, maybe after a last step, or out of the queue; it keeps its blocks and
        stays in `requests`. A step in flight still delivers its token. Relies on `Scheduler.running` being a list and
        on `update_from_output` looking requests up in `Scheduler.requests`."""
        if not self.last_steps.stays_for(request):
            self._take_out(request)

    def _take_out(self, request: Request) -> None:
        if not self.is_queued(request):
            self.places.lent[request.request_id] = request
        if request.status == RequestStatus.RUNNING:
            self.running.remove(request)
        else:
            self.waiting.remove_requests([request])
            self.kv_holding_waiting.remove_requests([request])
            self.deferred_waiting.discard(request)

    def take_back(self, request: Request) -> None:
        """Puts a lent request back where it was: into the batch, or to the front of the queue."""
        if self.last_steps.forget(request.request_id):
            return
        self.places.lent.pop(request.request_id, None)
        if request.status == RequestStatus.RUNNING:
            self.running.insert(0, request)  # behind a prompt that takes whole steps it would stand still
            return
        if self._is_blocked_waiting_status(request.status):
            self.deferred_waiting.add(request)
        queue = self.kv_holding_waiting if self._holds_kv_blocks(request) else self.waiting
        queue.prepend_request(request)

    # -- at the target

    def reserve(self, request: Request, blocks: int) -> int | None:
        """Allocates so many blocks and a spare one; returns tokens already cached here, None when there is no room.

        Takes the way of vLLM's own remote prefill (`num_external_computed_tokens`), which knows sliding windows and
        never zeroes blocks that are about to be written from outside. Behind a window no block is allocated, and the
        window is where it is while the last block is still empty: with a full one it would have moved on too far.
        """
        manager = self.kv_cache_manager
        cached_blocks, cached_tokens, _ = manager.get_computed_blocks(request)
        if not self.tables.may_share(cached_blocks, cached_tokens):
            cached_tokens = 0
        external = max(0, (blocks - 1) * self.block_tokens - cached_tokens)
        if cached_tokens or external:
            adopted = manager.allocate_slots(
                request,
                num_new_tokens=0,
                num_new_computed_tokens=cached_tokens,
                new_computed_blocks=cached_blocks if cached_tokens else None,
                num_external_computed_tokens=external,
                delay_cache_blocks=True,
                reserved_blocks=self._inflight_prefill_reserved_blocks() + _SPARE_BLOCKS,
                **not_zeroed(tuple(range(len(self.kv_cache_config.kv_cache_groups)))),
            )
            if adopted is None:
                return None
        tokens = max(blocks * self.block_tokens, cached_tokens) + self.spare_tokens
        if not self.tables.extend(request, tokens, watermark=True):
            manager.free(request)
            return None
        self.tables.states.keep_newest(request.request_id)
        return cached_tokens

    def grow(self, request: Request, tokens: int) -> bool:
        """Extends the reservation to `tokens` tokens; False when there is no room (nothing changed). It was let in when
        it was reserved, and grows as those that run."""
        grown = self.tables.extend(request, tokens, watermark=False)
        self.tables.states.keep_first(request.request_id)
        return grown

    def release_reservation(self, request: Request) -> None:
        self.kv_cache_manager.free(request)

    def adopt(self, request: Request, computed_tokens: int) -> None:
        """Makes an arrived request run in the next step (or, with no KV, wait at the front of the queue). Blocks that a
        sliding window has passed, and which were not copied, are given back first; others share the rest later."""
        self.steps.computes_hits_of(request)  # those that `reserve` found here
        request.num_computed_tokens = computed_tokens
        if computed_tokens:
            self.tables.states.place(request.request_id, computed_tokens)
            self.tables.zero_after(request.request_id, computed_tokens)
            self.kv_cache_manager.remove_skipped_blocks(request.request_id, computed_tokens, request.num_prompt_tokens)
            self.tables.unconfirmed.arrived(request)
        else:
            waits_on(request)
        if self.prefixes is not None and not computed_tokens:
            self.prefixes.comes(request)
        self.requests[request.request_id] = request
        if request.num_output_tokens:  # its first token and prefill statistics went out from the source
            request.status = RequestStatus.PREEMPTED
            request.prefill_stats = None
        self.take_back(request)

    def release(self, request_id: RequestId) -> None:
        """Frees a request that another instance owns now: no output, no word in `ended`."""
        self.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        self.ended = [(ended, why) for ended, why in self.ended if ended != request_id]

    # -- overridden

    def add_request(self, request: Request) -> None:
        if self.prefixes is not None and request.request_id not in self.requests:
            self.prefixes.comes(request)
        super().add_request(request)

    def schedule(self, throttle_prefills: bool = False) -> Any:
        if self.waiting:
            self.way.before_step(self.makes_way, self.places.has_slot())
        self.last_steps.begin()
        self.places.step_begins()
        with self.limits.in_force(len(self.places), self.waiting, self.way.sparing()):
            output = super().schedule(throttle_prefills)
        if output.total_num_scheduled_tokens:
            self.steps.begins()
            self.watch.begins(load_of(self.requests, output.num_scheduled_tokens))
            began = [*(new.req_id for new in output.scheduled_new_reqs), *output.scheduled_cached_reqs.resumed_req_ids]
            for request_id in began:
                self.steps.computes_hits_of(self.requests[request_id])
            arrivals_first(self.running, began, output.num_scheduled_tokens)
            self.on_begun(began)
        else:
            self.watch.rests()
        self.steps.still_use(blocks_beside(output))
        self.last_steps.over(output.num_scheduled_tokens)
        return output

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        return super()._handle_blocked_waiting_request(request) and self.places.lets_in(request)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        if scheduler_output.total_num_scheduled_tokens:
            self.steps.ends(scheduler_output.num_scheduled_tokens)
            self.thrown_away.step_ended(self.requests, scheduler_output, model_runner_output)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if scheduler_output.total_num_scheduled_tokens:
            self.watch.ends()
        return outputs

    def _free_request_blocks(self, request: Request) -> None:
        if request.num_in_flight_tokens or request.request_id in self.steps.drafting:
            self.steps.still_use(block.block_id for block in self.tables.held(request.request_id))
        self.tables.freed(request.request_id)
        super()._free_request_blocks(request)

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        transfer_params = super()._free_request(request, delay_free_blocks)
        self.places.lent.pop(request.request_id, None)
        if self.prefixes is not None:
            self.prefixes.ended(request)
        self.last_steps.forget(request.request_id)
        self.ended.append((RequestId(request.request_id), str(request.status).removeprefix("FINISHED_").lower()))
        return transfer_params

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        waits_again(request, drop_stale_output)
        if self.prefixes is not None and request.request_id in self.tables.unconfirmed:
            self.prefixes.comes(request)  # what it brought is gone: it is computed here, and nobody has heard of it
        super()._preempt_request(request, timestamp, drop_stale_output)
        self.thrown_away.preempted(request, drop_stale_output)
        self.preemptions += 1

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        if reset_running_requests:
            self._begin_arrived()
        return super().reset_prefix_cache(reset_running_requests, reset_connector)

    # -- helpers

    def _begin_arrived(self) -> None:
        """Those that came with their KV and wait for their first step here are preempted with those that run."""
        arrived = wait_for_a_step(self)
        self.kv_holding_waiting.remove_requests(arrived)
        for request in arrived:
            request.status = RequestStatus.RUNNING
            self.running.append(request)


class LlumnixScheduler(MigrationSupport, Scheduler):
    """For engines without async scheduling."""


class LlumnixAsyncScheduler(MigrationSupport, AsyncScheduler):
    """For engines with async scheduling. Must derive from AsyncScheduler: vLLM checks for it."""
