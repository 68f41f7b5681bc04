"""Requests that have arrived here with their KV, and of which nobody has confirmed yet that they are this instance's.

A source that gives an attempt up lets go of its blocks at once, and its target may hear of that late: when it has read
what is in them by then, and runs the request. Nobody gets the tokens of such a one. But whoever has the same prompt
would get its blocks, out of vLLM's prefix cache. So they are not entered there before the front end has said that the
request is this instance's: then the source has kept what was read.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.request import Request


class Unconfirmed:
    """Relies on `KVCacheCoordinator.cache_blocks` being the only way into the prefix cache, and replaces it on the
    coordinator of this manager."""

    def __init__(self, manager: KVCacheManager) -> None:
        self._manager = manager
        self._requests: set[str] = set()
        coordinator: Any = manager.coordinator
        self._enter = coordinator.cache_blocks
        coordinator.cache_blocks = self._enter_if_confirmed

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def arrived(self, request: Request) -> None:
        self._requests.add(request.request_id)

    def confirmed(self, request: Request) -> bool:
        """What it holds is for others, too; what steps in flight compute follows with the next one. False if that was
        known."""
        if request.request_id not in self._requests:
            return False
        self._requests.remove(request.request_id)
        self._manager.cache_blocks(request, request.num_computed_tokens - request.num_in_flight_tokens)
        return True

    def ended(self, request_id: str) -> None:
        """Or it is computed anew here: what came is gone."""
        self._requests.discard(request_id)

    def _enter_if_confirmed(self, request: Request, num_computed_tokens: int) -> None:
        if request.request_id not in self._requests:
            self._enter(request, num_computed_tokens)
