"""Prompts that vLLM does not cut, as it does not those of latent attention on CPUs, are computed in one step. One that
no step has room for would be queued for ever (`Scheduler.schedule` stops at it, vllm/v1/core/sched/scheduler.py)."""

from __future__ import annotations

from typing import Any

from llumnix.errors import UsageError


def make_room(config: Any, asked: int | None) -> None:
    """Gives steps of a VllmConfig the tokens that its batches have, unless `--max-num-scheduled-tokens` (`asked`) says
    how many. Raises UsageError if the longest prompt does not fit in one then.

    With drafts, vLLM 0.32 takes the tokens of a step from those of a batch (`_set_max_num_scheduled_tokens`), and its
    CPU platform gives batches more of them after that."""
    scheduling, drafts, model = config.scheduler_config, config.speculative_config, config.model_config
    if scheduling.enable_chunked_prefill and model.attn_type != "encoder_only":  # whose engine switches it off
        return
    batch = scheduling.max_num_batched_tokens
    if asked is None:
        scheduling.max_num_scheduled_tokens = batch
    for_drafts = drafts.max_num_new_slots_for_drafting if drafts is not None else 0
    room = min(scheduling.max_num_scheduled_tokens, batch - for_drafts)
    generates = model.runner_type == "generate"  # then vLLM wants room for an answer beside the prompt
    longest = model.max_model_len - generates
    if room < longest:
        raise UsageError(
            f"Prompts are not cut here and may have {longest} tokens, but a step has room for {room}; longer ones "
            "would wait for ever: raise --max-num-scheduled-tokens and --max-num-batched-tokens, or lower "
            "--max-model-len."
        )
