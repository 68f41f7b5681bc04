"""Steps that an engine's workers were given and whose output is not here yet: with asynchronous scheduling there is one
nearly always. And drafts: a step's output comes before the drafter has run on it. What of a request is settled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from llumnix.engine.vllm.instance.state import passport_of


class StepsInFlight:
    """Counts steps that have something to compute. They end in the order in which they began, and follow each other on
    the device; bytes from another instance keep no order with them."""

    def __init__(self, drafts_follow: bool = False, computed_anew: int = 0) -> None:
        """`drafts_follow`: a drafter with a KV cache of its own writes the KV of a step's tokens when the step's
        output is sampled, so maybe after the scheduler has it, but before the next step. `computed_anew`: the last
        tokens whose KV one of several modules that draft writes again."""
        self.begun = 0
        self.drafting: Mapping[str, int] = {}
        """Tokens of each request of the last step whose output is here, while its drafter may still be at work."""
        self._drafts_follow = drafts_follow
        self._computed_anew = computed_anew
        self._ended = 0
        self._used_until: dict[int, int] = {}  # block -> the last step that may still write or read it

    @property
    def done(self) -> int:
        """Steps of which nothing is computed any more."""
        return self._ended - bool(self.drafting)

    @property
    def idle(self) -> bool:
        """The output of every step is here: no other follows soon, maybe."""
        return self._ended == self.begun

    def begins(self) -> None:
        self.begun += 1

    def ends(self, tokens: Mapping[str, int]) -> None:
        """The output of the oldest one is here. `tokens`: how many each request was given."""
        self._ended += 1
        self.drafting = tokens if self._drafts_follow else {}
        self._forget()

    def drafter_ended(self) -> None:
        """The device was seen to have nothing to do while `idle`."""
        self.drafting = {}
        self._forget()

    def computes_hits_of(self, request: Request) -> None:
        """What it shares with others from the prefix cache may still be computed by the steps that have begun: vLLM
        shares blocks as soon as the step that will fill them is scheduled."""
        passport_of(request).hits_settle_at = self.begun

    def is_settling(self, request: Request) -> bool:
        return passport_of(request).hits_settle_at > self.done

    def settled_tokens(self, request: Request) -> int:
        """Tokens whose KV is written and never changes again: none of steps in flight (`num_in_flight_tokens`, with
        placeholders for drafts), none a drafter is at, nor the last where one of several modules computes them anew."""
        if self.is_settling(request):
            return 0
        unsettled = request.num_in_flight_tokens + self.drafting.get(request.request_id, 0) + self._computed_anew
        return max(0, request.num_computed_tokens - unsettled)

    def still_use(self, blocks: Iterable[int]) -> None:
        """Blocks that have just been freed by a request of a step in flight; or that one zeroes, or copies, whoever has
        them by then."""
        if self.begun > self.done:
            self._used_until.update(dict.fromkeys(blocks, self.begun))

    def may_touch(self, blocks: Iterable[int]) -> bool:
        """Whether a step in flight may still write or read one of these, for a request that had it before."""
        return bool(self._used_until) and any(block in self._used_until for block in blocks)

    def _forget(self) -> None:
        if self._used_until:
            self._used_until = {block: step for block, step in self._used_until.items() if step > self.done}


def blocks_beside(output: SchedulerOutput) -> list[int]:
    """That a step zeroes, or copies to or from, beside what its requests read and write. Relies on the names that
    `SchedulerOutput` (vllm/v1/core/sched/output.py) has for them."""
    copied = chain.from_iterable(output.kv_cache_block_copies or ())
    return [*(output.new_block_ids_to_zero or ()), *copied]
