"""What requests of the queue need to start, as vLLM itself asks it."""

from __future__ import annotations

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request


def blocks_to_start(scheduler: Scheduler, request: Request) -> int:
    """Free blocks that it takes from all KV groups: those of its prefix that somebody holds are not among them, those
    that nobody does are. The same question as that of `KVCacheManager.allocate_slots` with `full_sequence_must_fit`."""
    manager = scheduler.kv_cache_manager
    cached, cached_tokens, _ = manager.get_computed_blocks(request)
    tokens = min(request.num_tokens, scheduler.max_model_len)
    encoder_tokens = 0
    if scheduler.is_encoder_decoder and request.has_encoder_inputs:
        encoder_tokens = sum(request.get_num_encoder_embeds(place) for place in range(len(request.mm_features)))
    return manager.coordinator.get_num_blocks_to_allocate(
        request_id=request.request_id,
        num_tokens=tokens,
        new_computed_blocks=cached.blocks,
        num_encoder_tokens=encoder_tokens,
        total_computed_tokens=cached_tokens,
        num_local_computed_tokens=cached_tokens,
        num_tokens_main_model=tokens,
        apply_admission_cap=True,
        prefill_end=max(request.num_prompt_tokens, request.num_tokens - 1),
    )


def wait_for_a_step(scheduler: Scheduler) -> list[Request]:
    """Those that wait with their KV, and for nothing but a step: they have come with it, or have a further chunk."""
    return [each for each in scheduler.kv_holding_waiting if not scheduler._is_blocked_waiting_status(each.status)]
