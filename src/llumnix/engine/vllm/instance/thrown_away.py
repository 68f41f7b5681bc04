"""Tokens that were drawn with a seed and never said, so that a replay can count them.

With asynchronous scheduling a step is in flight when somebody resets the whole prefix cache: what it draws is dropped
(`drop_stale_output` in vllm/v1/core/sched/scheduler.py), and drawn once more by the next step. A generator of the V1
runner is one number further from then on than its request has tokens; a dead one's place is found by counting them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.v1.request import Request


class ThrownAway:
    """Of one engine. To be told before vLLM's scheduler takes note of a step's output."""

    def __init__(self) -> None:
        self._stale: set[str] = set()  # what is in flight for them is dropped when it comes
        self._drawn: list[Request] = []

    def preempted(self, request: Request, drop_stale_output: bool) -> None:
        sampling = request.sampling_params
        if drop_stale_output and request.num_in_flight_tokens and sampling is not None and sampling.seed is not None:
            self._stale.add(request.request_id)

    def step_ended(self, requests: Mapping[str, Request], scheduled: Any, output: Any) -> None:
        for request_id in list(self._stale):
            request = requests.get(request_id)
            if request is None or not request.num_stale_output_tokens:
                self._stale.discard(request_id)
            elif request_id in scheduled.num_scheduled_tokens and _drawn(output, request_id):
                self._drawn.append(request)

    def take(self) -> list[Request]:
        """The request of each such token since the last time."""
        drawn, self._drawn = self._drawn, []
        return drawn


def _drawn(output: Any, request_id: str) -> bool:
    """Nothing is in the middle of a prefill."""
    return bool(output.sampled_token_ids and output.sampled_token_ids[output.req_id_to_index[request_id]])
