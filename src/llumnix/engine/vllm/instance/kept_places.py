"""Places that nobody from the queue may have: in the batch, and for LoRA adapters in a step. They are for requests that
arrive with their KV, and for lent ones, which come back when their move fails."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from llumnix.engine.vllm.instance.needs import wait_for_a_step


class KeptPlaces:
    """Of one scheduler. Called on the engine's main thread only."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.arriving: dict[str, Request] = {}
        """On their way in, with their KV."""
        self.lent: dict[str, Request] = {}
        """Taken out of the batch, with their KV, and may come back into it."""
        self._scheduler = scheduler
        self._adapters: set[int] = set()
        """While a step is planned: those in use, or kept a place for; none if no place is kept."""

    def __len__(self) -> int:
        """In the batch."""
        return len(self.arriving) + len(self.lent)

    def has_slot(self) -> bool:
        """Whether one more request could run here right after it arrives."""
        # Those that wait with their KV, just adopted ones above all, go before all others.
        scheduler = self._scheduler
        taken = len(scheduler.running) + len(scheduler.kv_holding_waiting) + len(self)
        return taken < scheduler.max_num_active_reqs

    def has_adapter_place(self, request: Request) -> bool:
        """Its adapter is in use, or one more can be: vLLM passes over a request that would be one too many in a step,
        and ends if such a one runs already."""
        return request.lora_request is None or self._fits(request, self._kept_for() | self._in_use())

    def step_begins(self) -> None:
        kept_for = self._kept_for()
        self._adapters = kept_for and kept_for | self._in_use()

    def lets_in(self, request: Request) -> bool:
        """Whether one that waits may run in the step that is being planned, as far as places of adapters are kept; else
        vLLM's own rule is enough."""
        if not self._adapters or request.lora_request is None:
            return True
        fits = self._fits(request, self._adapters)
        if fits:
            self._adapters.add(request.lora_request.lora_int_id)
        return fits

    def _in_use(self) -> set[int]:
        return _adapters_of(self._scheduler.running)

    def _kept_for(self) -> set[int]:
        """Those of requests, too, that wait with their KV: for their first step here, or for their next chunk's."""
        if self._scheduler.lora_config is None:
            return set()
        return _adapters_of(chain(self.arriving.values(), self.lent.values(), wait_for_a_step(self._scheduler)))

    def _fits(self, request: Request, adapters: set[int]) -> bool:
        config, asked = self._scheduler.lora_config, request.lora_request
        return config is None or asked is None or asked.lora_int_id in adapters or len(adapters) < config.max_loras


def _adapters_of(requests: Iterable[Request]) -> set[int]:
    return {each.lora_request.lora_int_id for each in requests if each.lora_request is not None}
