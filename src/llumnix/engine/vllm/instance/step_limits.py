"""What one step may take at most: places in the batch, and tokens of prompts beside those who decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain

from vllm.v1.core.sched.scheduler import Scheduler

from llumnix.control.step_fit import StepLoad
from llumnix.engine.vllm.instance.step_watch import load_ahead
from llumnix.policy.snapshot import StepCost
from llumnix.policy.step_cost import prompt_tokens


class StepLimits:
    """Of one scheduler; never above its own."""

    def __init__(self, scheduler: Scheduler, cost: Callable[[], StepCost | None]) -> None:
        self.target_s = 0.0
        """Prompts leave so much between two tokens of those who decode; 0: any time."""
        self._scheduler = scheduler
        self._cost = cost

    def step_tokens(self, batch: StepLoad) -> int:
        """Tokens that a step beside these requests computes at most, theirs among them."""
        decode_tokens = self._decode_tokens(batch)
        return decode_tokens + self._prompt_tokens(batch, self._scheduler.max_num_scheduled_tokens - decode_tokens)

    @contextmanager
    def in_force(self, slots_kept: int) -> Iterator[None]:
        """While `Scheduler.schedule` runs. Nobody from the queue gets the last `slots_kept` places: relies on its
        reading `max_num_active_reqs` once per request of the queue."""
        scheduler = self._scheduler
        active = scheduler.max_num_active_reqs
        scheduler.max_num_active_reqs = active - slots_kept
        try:
            with self._prompts_held_back() if self.target_s else nullcontext():
                yield
        finally:
            scheduler.max_num_active_reqs = active

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
