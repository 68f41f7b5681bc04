"""One more step, in which no draft is accepted, before a request leaves a batch whose layers overwrite their state.

With drafts such a state has several places: a step leaves one after each token, and how many of these were right, so
which place counts, the worker alone knows. It takes the first one for a request that was away for a step, here or
elsewhere (V1: `InputBatch.add_request`, V2: `MambaHybridModelState.add_request`), and that is where it is after a step
without a right draft.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from vllm.v1.request import Request, RequestStatus


class LastSteps:
    """Of requests that are to leave. Called on the engine's main thread only."""

    def __init__(self, needed: bool, drafts: list[int], take_out: Callable[[Request], None]) -> None:
        """`drafts`: what they are given instead of their own. `take_out`: called when one can leave."""
        self._needed = needed
        self._drafts = drafts
        self._take_out = take_out
        self._requests: dict[str, Request] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def stays_for(self, request: Request) -> bool:
        """Whether it has to; then `over` has it taken out."""
        stays = self._needed and request.status == RequestStatus.RUNNING
        if stays:
            self._requests[request.request_id] = request
        return stays

    def forget(self, request_id: str) -> bool:
        """It does not leave (any more); False if it was not about to."""
        return self._requests.pop(request_id, None) is not None

    def begin(self) -> None:
        """To be called before each step is scheduled. Who was preempted between two steps leaves as it is: scheduled
        again, it would leave in the middle of its prompt."""
        self.over(())
        for request in self._requests.values():
            request.spec_token_ids = list(self._drafts)

    def over(self, scheduled: Container[str]) -> None:
        """A step was scheduled with these: once it is computed they can leave, and those that were preempted can."""
        leave = [
            each
            for each in self._requests.values()
            if each.request_id in scheduled or each.status != RequestStatus.RUNNING
        ]
        for request in leave:
            del self._requests[request.request_id]
            self._take_out(request)
