"""vLLM's scheduler state as snapshots: the sole reader of its queues for load reports and victim choice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TypedDict

from vllm.v1.request import Request

from llumnix.engine.vllm.instance.growth import growth_blocks, remaining_tokens
from llumnix.engine.vllm.instance.movable import why_request_pinned
from llumnix.engine.vllm.instance.scheduler import MigrationSupport
from llumnix.engine.vllm.instance.state import passport_of
from llumnix.engine.vllm.instance.step_watch import load_ahead
from llumnix.policy.relief import short_blocks
from llumnix.policy.snapshot import InstanceSnapshot, RequestSnapshot
from llumnix.policy.victim import QUEUE_SHOWN
from llumnix.types import InstanceId, InstanceState, Priority, RequestId, RequestState, Role, is_high
from llumnix.wire.to_front_end import RequestRow


class Fixed(TypedDict):
    """What a report says that is not read off the scheduler."""

    id: InstanceId
    at: float
    seq: int
    state: InstanceState
    drain_keep: bool
    asked_to_end: bool
    pinned: bool
    dispatches_seen: tuple[int, ...]
    role: Role
    to_decode: int
    to_decode_blocks: int
    incoming: int
    outgoing: int
    migrations_in: int
    migrations_out: int
    ended: int
    preemptions_avoided: int
    recompute_tokens_saved: int
    late_messages: int


def instance_snapshot(scheduler: MigrationSupport, fixed: Fixed, relief_steps: int) -> InstanceSnapshot:
    """The load report. `relief_steps`: how far to look ahead for a shortage of blocks; 0 for not at all.

    Costs a look at each request of the batch, and nothing for those that wait.
    """
    total_blocks, free_blocks = _blocks(scheduler)
    queue = scheduler.waiting
    ahead = load_ahead(scheduler.running)
    return InstanceSnapshot(
        total_blocks=total_blocks,
        watermark_blocks=scheduler.kv_cache_manager.watermark_blocks,
        free_blocks=free_blocks,
        **_kinds(scheduler),
        max_running=scheduler.max_num_active_reqs,
        running=len(scheduler.running),
        waiting=len(queue) + len(scheduler.kv_holding_waiting),
        preempted=queue.preempted,
        head_of_line_blocks=scheduler.counts.to_start(queue.peek_request().num_tokens) if queue else 0,
        head_of_line_s=_heads_for_s(queue.peek_request(), fixed["at"]) if queue else 0.0,
        spared_blocks=scheduler.way.sparing()(queue.peek_request()) if queue else 0,
        queued_blocks=queue.blocks,
        prefill_tokens=queue.tokens + ahead.prefill_tokens,
        decoding=ahead.decoding,
        context_tokens=ahead.context_tokens,
        prefix_chunk_tokens=scheduler.prefixes.chunk_tokens if scheduler.prefixes is not None else 0,
        step_tokens=scheduler.limits.step_tokens(ahead),
        step_cost=scheduler.watch.cost,
        slowdown=scheduler.watch.latest.slowdown(fixed["at"]),
        step_s=scheduler.watch.latest.mean_s(fixed["at"]),
        shortest_step_s=scheduler.watch.latest.shortest_s,
        computed_tokens=scheduler.watch.computed_tokens,
        made_tokens=scheduler.watch.made_tokens,
        tpot_target_s=scheduler.limits.target_s,
        high_running=sum([is_high(request.priority) for request in scheduler.running]),
        high_waiting=queue.high,
        preemptions=scheduler.preemptions,
        short_blocks=_short_blocks(scheduler, free_blocks, relief_steps),
        smallest_running_blocks=0 if fixed["pinned"] else _smallest_running_blocks(scheduler),
        **fixed,
    )


def _heads_for_s(first: Request, now_s: float) -> float:
    """How long it has been the first of the queue, as far as this look and those before it found it there."""
    passport = passport_of(first)
    if passport.headed_s is None:
        passport.headed_s = now_s
    return now_s - passport.headed_s


class _Kinds(TypedDict):
    """What blocks there are."""

    block_tokens: int
    state_blocks: int
    kv_groups: tuple[tuple[int, int], ...]


def _kinds(scheduler: MigrationSupport) -> _Kinds:
    counts = scheduler.counts
    return _Kinds(block_tokens=scheduler.block_tokens, state_blocks=counts.fixed_blocks, kv_groups=counts.kv_groups)


def _blocks(scheduler: MigrationSupport) -> tuple[int, int]:
    """All there are, and the free ones. An engine without a KV cache (an encoder) has none, but a batch that fills up:
    there each token counts as if it were kept, and the largest batch as what the engine can keep."""
    if scheduler.kv_cache_config.kv_cache_groups:
        pool = scheduler.kv_cache_manager.block_pool
        return pool.num_gpu_blocks - 1, pool.get_num_free_blocks()  # without the null block
    total_blocks = scheduler.max_num_running_reqs * scheduler.blocks_for(scheduler.max_model_len)
    return total_blocks, total_blocks - sum(scheduler.blocks_for(request.num_tokens) for request in scheduler.running)


def _short_blocks(scheduler: MigrationSupport, free_blocks: int, steps: int) -> int:
    return short_blocks(growth_blocks(scheduler.running, scheduler.counts, steps), free_blocks) if steps else 0


def _smallest_running_blocks(scheduler: MigrationSupport) -> int:
    smallest: int | None = None
    for request in scheduler.running:
        tokens = request.num_tokens
        if (
            (smallest is None or tokens < smallest)
            and not is_high(request.priority)
            and not _why_pinned(scheduler, request)
        ):
            smallest = tokens
    return 0 if smallest is None else scheduler.counts.to_hold(smallest)


def _why_pinned(scheduler: MigrationSupport, request: Request) -> str:
    return why_request_pinned(request, drafts=scheduler.num_spec_tokens > 0)


def request_snapshots(
    scheduler: MigrationSupport, engine_pins: str, only: RequestId | None = None, *, exact: bool = True
) -> tuple[RequestSnapshot, ...]:
    """Those that could be asked to leave: the running ones, then the front of the queue; or only that one. Not `exact`
    spares the look at every block for who shares it, where nobody asks for `held_blocks`."""
    return tuple(
        RequestSnapshot(
            id=RequestId(request.request_id),
            state=RequestState.WAITING if scheduler.is_queued(request) else RequestState.RUNNING,
            priority=Priority(request.priority),
            arrival_s=request.arrival_time,
            output_tokens=request.num_output_tokens,
            held_blocks=_held_blocks(scheduler, request, exact),
            needed_blocks=_needed_blocks(scheduler, request),
            length_blocks=scheduler.blocks_for(request.num_tokens),
            why_pinned=engine_pins or _why_pinned(scheduler, request),
            remaining_tokens=remaining_tokens(request),
            moved_s=passport_of(request).moved_s,
            has_adapter=request.lora_request is not None,
        )
        for request in (_candidates(scheduler) if only is None else _the_one(scheduler, only))
    )


def _held_blocks(scheduler: MigrationSupport, request: Request, exact: bool) -> float:
    if not exact:
        return scheduler.counts.to_hold(request.num_computed_tokens)
    return sum(1 / block.ref_cnt for block in scheduler.tables.held(request.request_id))


def _needed_blocks(scheduler: MigrationSupport, request: Request) -> int:
    counts = scheduler.counts
    return (counts.to_start if scheduler.is_queued(request) else counts.to_hold)(request.num_tokens)


def _candidates(scheduler: MigrationSupport) -> Iterator[Request]:
    yield from scheduler.running
    first = list(islice(scheduler.kv_holding_waiting, QUEUE_SHOWN))
    yield from first
    yield from scheduler.waiting.first(QUEUE_SHOWN - len(first))


def _the_one(scheduler: MigrationSupport, request_id: RequestId) -> Iterator[Request]:
    request = scheduler.requests.get(request_id)
    if request is not None and not request.is_finished():
        yield request


def request_rows(scheduler: MigrationSupport, engine_pins: str, like: str = "") -> Iterator[RequestRow]:
    """As `GET /llumnix/v1/requests` shows them; a lent request (in hand-over) is listed, too. `like`: only those whose
    client's id has this in it. Of the requests that are there now; each is described when it is come to."""
    for request in list(scheduler.requests.values()):
        client_id = _client_id(request)
        if like not in client_id or request.is_finished():
            continue
        yield RequestRow(
            request=RequestId(request.request_id),
            client_id=client_id,
            front_end=request.client_index,
            priority=request.priority,
            prompt_tokens=request.num_prompt_tokens,
            output_tokens=request.num_output_tokens,
            state=_state(scheduler, request),
            migrations=passport_of(request).migrations,
            why_pinned=engine_pins or _why_pinned(scheduler, request),
        )


def _client_id(request: Request) -> str:
    return passport_of(request).original.external_req_id or request.request_id


def _state(scheduler: MigrationSupport, request: Request) -> RequestState:
    if scheduler.is_queued(request):
        return RequestState.WAITING
    return RequestState.MIGRATING if scheduler.is_lent(request) else RequestState.RUNNING
