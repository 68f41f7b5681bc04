"""What one step may take at most: places in the batch, memory, and tokens of prompts beside those who decode."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from llumnix.control.step_fit import StepLoad
from llumnix.engine.vllm.instance.counted_queue import CountedQueue
from llumnix.engine.vllm.instance.needs import wait_for_a_step
from llumnix.engine.vllm.instance.step_watch import load_ahead
from llumnix.policy.snapshot import StepCost
from llumnix.policy.step_cost import prompt_tokens

log = logging.getLogger(__name__)


class StepLimits:
    """Of one scheduler; never above its own."""

    def __init__(self, scheduler: Scheduler, cost: Callable[[], StepCost | None]) -> None:
        self._target_s = 0.0
        self._scheduler = scheduler
        self._cost = cost

    @property
    def target_s(self) -> float:
        """Prompts leave so much between two tokens of those who decode; 0: any time."""
        return self._target_s

    @target_s.setter
    def target_s(self, target_s: float) -> None:
        """Nothing comes of it where vLLM computes prompts, or images, as a whole, by flag or by what the model is
        (latent attention on CPUs, encoder-decoder): they would be cut all the same, or wait while anybody decodes."""
        if target_s and not self._cuts:
            log.warning("--tpot-target-ms does nothing here: vLLM does not divide this model's prompts among steps")
        self._target_s = target_s if self._cuts else 0.0

    def step_tokens(self, batch: StepLoad) -> int:
        """Tokens that a step beside these requests computes at most: what drafts leave to prompts, and one of each that
        decodes."""
        most = max(0, self._scheduler.max_num_scheduled_tokens - self._decode_tokens(batch))
        return batch.decoding + self._prompt_tokens(batch, most)

    @contextmanager
    def in_force(self, slots_kept: int, waiting: CountedQueue, spared: Callable[[Request], int]) -> Iterator[None]:
        """While `Scheduler.schedule` runs. Nobody from the queue gets the last `slots_kept` places, nor, beside others,
        the blocks that are `spared` beside it, beyond vLLM's own watermark. Those that hold blocks while they wait come
        before that, and need leave nothing free: what has arrived would stand still. Relies on `max_num_active_reqs`
        and, in `KVCacheManager.allocate_slots`, `watermark_blocks` being read once per request of the queue, after it
        was looked at."""
        scheduler, manager = self._scheduler, self._scheduler.kv_cache_manager
        active, watermark = scheduler.max_num_active_reqs, manager.watermark_blocks

        def spare(first: Request) -> None:
            manager.watermark_blocks = watermark + spared(first)

        scheduler.max_num_active_reqs, manager.watermark_blocks = active - slots_kept, 0
        waiting.on_look = spare
        try:
            with self._prompts_held_back() if self._leaves_tokens() else nullcontext():
                yield
        finally:
            scheduler.max_num_active_reqs, manager.watermark_blocks = active, watermark
            waiting.on_look = None

    @property
    def _cuts(self) -> bool:
        """vLLM may divide a prompt among steps."""
        config = self._scheduler.scheduler_config
        return config.enable_chunked_prefill and not config.disable_chunked_mm_input

    def _leaves_tokens(self) -> bool:
        """For a target, or those that just came with their KV: a prompt in the batch would take them all."""
        if self.target_s > 0 or not self._cuts:
            return self.target_s > 0
        return bool(wait_for_a_step(self._scheduler))

    @contextmanager
    def _prompts_held_back(self) -> Iterator[None]:
        """Relies on `Scheduler.schedule` reading all three when it begins.

        `long_prefill_token_threshold` is for those who decode behind a prompt in the batch, or have just come with
        their KV: of the tokens of a step it leaves theirs. Where blocks hold states, vLLM cuts prompts by both limits.
        """
        scheduler, config = self._scheduler, self._scheduler.scheduler_config
        tokens, longest = scheduler.max_num_scheduled_tokens, config.long_prefill_token_threshold
        adaptive = scheduler.adaptive_long_prefill_threshold
        batch = load_ahead(chain(scheduler.running, scheduler.kv_holding_waiting))
        of_prompts = self._prompt_tokens(batch, tokens - self._decode_tokens(batch))
        scheduler.max_num_scheduled_tokens = self._decode_tokens(batch) + of_prompts
        config.long_prefill_token_threshold = of_prompts if adaptive or not longest else min(longest, of_prompts)
        scheduler.adaptive_long_prefill_threshold = False
        try:
            yield
        finally:
            scheduler.max_num_scheduled_tokens, config.long_prefill_token_threshold = tokens, longest
            scheduler.adaptive_long_prefill_threshold = adaptive

    def _prompt_tokens(self, batch: StepLoad, most: int) -> int:
        return prompt_tokens(self._cost(), batch.decoding, batch.context_tokens, self.target_s, most)

    def _decode_tokens(self, batch: StepLoad) -> int:
        return batch.decoding * (1 + self._scheduler.num_spec_tokens)
