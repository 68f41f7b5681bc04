"""What the engine's steps cost (`control/step_fit.py`), and how slow it is just now, measured as they end."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from time import monotonic

from vllm.v1.request import Request

from llumnix.control.latest_steps import LatestSteps
from llumnix.control.step_fit import StepFit, StepLoad
from llumnix.policy.snapshot import StepCost


class StepWatch:
    """A step takes from the end of the one before to its own, all that the host does between them included; but one
    that follows a rest of the engine begins when it is given out. It rests while it has nothing to compute: nobody is
    there, or whoever is waits for something else (a grammar, the end of a pause)."""

    def __init__(self) -> None:
        self._fit = StepFit()
        self.latest = LatestSteps()
        self._given: deque[tuple[StepLoad, float]] = deque()
        self._ended_s: float | None = None
        """When the last step ended; None if the engine has rested since."""
        self.computed_tokens = 0
        self.made_tokens = 0

    @property
    def cost(self) -> StepCost | None:
        return self._fit.cost

    def begins(self, load: StepLoad) -> None:
        self._given.append((load, monotonic()))
        self.computed_tokens += load.prefill_tokens
        self.made_tokens += load.decoding

    def ends(self) -> None:
        """The output of the oldest one is here."""
        load, given_s = self._given.popleft()
        now_s = monotonic()
        took_s = now_s - (given_s if self._ended_s is None else self._ended_s)
        self.latest.add(now_s, took_s, self._fit.expected_s(load))
        self._fit.add(load, took_s)
        self._ended_s = now_s

    def rests(self) -> None:
        """Nothing is to be computed just now; steps in flight may be."""
        if not self._given:
            self._ended_s = None


def load_of(requests: Mapping[str, Request], scheduled_tokens: Mapping[str, int]) -> StepLoad:
    """Of a step that was just planned. Relies on `Scheduler._update_after_schedule` having counted its tokens as
    computed already."""
    prefill_tokens = decoding = context_tokens = 0
    for name, tokens in scheduled_tokens.items():
        request = requests[name]
        if is_decoding(request, request.num_computed_tokens - tokens):
            decoding += 1
            context_tokens += request.num_tokens
        else:
            prefill_tokens += tokens
    return StepLoad(prefill_tokens, decoding, context_tokens)


def load_ahead(requests: Iterable[Request]) -> StepLoad:
    """All that a batch still computes of prompts, and those of it that are past that."""
    prefill_tokens = decoding = context_tokens = 0
    for request in requests:
        if is_decoding(request, request.num_computed_tokens):
            decoding += 1
            context_tokens += request.num_tokens
        else:
            prefill_tokens += request.num_tokens - request.num_computed_tokens
    return StepLoad(prefill_tokens, decoding, context_tokens)


def is_decoding(request: Request, computed_tokens: int) -> bool:
    """Only its newest token is left to compute, which an asynchronous step may not even have made yet."""
    return request.num_tokens - computed_tokens <= 1
