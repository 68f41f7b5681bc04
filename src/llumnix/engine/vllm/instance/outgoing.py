"""Requests that are to leave: whose progress is watched, what is pinned, who is detached with steps still in flight."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.request import Request

from llumnix.control import events
from llumnix.engine.vllm.instance.scheduler import MigrationSupport
from llumnix.engine.vllm.instance.state import makes_tokens
from llumnix.types import RequestId


class OutgoingRequests:
    """Twin of `IncomingRequests`. Called on the engine's main thread only.

    The iterators look at each request when they come to it: handling what they gave may have changed the next one.
    """

    def __init__(self, scheduler: MigrationSupport, clock: Callable[[], float]) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._watched: dict[RequestId, int] = {}  # preemptions that are told already
        self._leaving: set[RequestId] = set()
        self._pins: dict[tuple[RequestId, int], list[KVCacheBlock]] = {}

    @property
    def watching(self) -> bool:
        return bool(self._watched)

    @property
    def leaving(self) -> bool:
        return bool(self._leaving)

    def watch(self, request_id: RequestId) -> events.Progress:
        """Returns where it stands, as maybe no step follows soon."""
        request = self._scheduler.requests[request_id]
        self._watched[request_id] = request.num_preemptions
        return self._progress(request)

    def unwatch(self, request_id: RequestId) -> None:
        self._watched.pop(request_id, None)

    def ended(self, request_id: RequestId) -> None:
        self._watched.pop(request_id, None)
        self._leaving.discard(request_id)

    def pin(self, request_id: RequestId, epoch: int, first_block: int, blocks: int) -> None:
        request = self._scheduler.requests[request_id]
        # Each step overwrites its state, so there is none to keep before it has left the batch.
        state_tokens = request.num_computed_tokens if self._scheduler.is_lent(request) else 0
        held = self._scheduler.tables.pin(request_id, first_block, blocks, state_tokens)
        self._pins.setdefault((request_id, epoch), []).extend(held)

    def unpin(self, request_id: RequestId, epoch: int) -> None:
        self._scheduler.tables.unpin(self._pins.pop((request_id, epoch), []))

    def detach(self, request_id: RequestId) -> None:
        self._scheduler.lend(self._scheduler.requests[request_id])
        self._leaving.add(request_id)

    def reattach(self, request_id: RequestId) -> None:
        self._leaving.discard(request_id)
        request = self._scheduler.requests.get(request_id)
        if request is not None:
            self._scheduler.take_back(request)

    def release(self, request_id: RequestId) -> None:
        self._leaving.discard(request_id)
        self._scheduler.release(request_id)

    def progress(self) -> Iterator[events.Progress | events.Preempted]:
        """What the last step did to the requests that are watched."""
        for request_id in list(self._watched):
            request = self._scheduler.requests.get(request_id)
            if request is None or request_id not in self._watched or request_id in self._leaving:
                continue
            if request.num_preemptions > self._watched[request_id]:
                self._watched[request_id] = request.num_preemptions
                yield events.Preempted(at=self._clock(), request=request_id)
            else:
                yield self._progress(request)

    def detached(self) -> Iterator[events.Detached]:
        """Those that no step in flight touches any more."""
        for request_id in sorted(self._leaving):
            request = self._scheduler.requests.get(request_id)
            if request_id not in self._leaving or request is None or request_id in self._scheduler.last_steps:
                continue
            if request.num_in_flight_tokens == 0:
                self._leaving.discard(request_id)
                yield events.Detached(
                    at=self._clock(),
                    request=request_id,
                    total_blocks=self._scheduler.blocks_for(request.num_computed_tokens),
                    output_tokens=request.num_output_tokens,
                    state_blocks=self._scheduler.tables.state_blocks if request.num_computed_tokens else 0,
                )

    def _progress(self, request: Request) -> events.Progress:
        queued = self._scheduler.is_queued(request)
        # While it is unknown what is settled it is treated as one in its prefill: it is not time to hand it over.
        decoding = not queued and makes_tokens(request) and not self._scheduler.steps.is_settling(request)
        return events.Progress(
            at=self._clock(),
            request=RequestId(request.request_id),
            settled_blocks=self._scheduler.steps.settled_tokens(request) // self._scheduler.block_tokens,
            total_blocks=self._scheduler.blocks_for(request.num_computed_tokens),
            output_tokens=request.num_output_tokens,
            decoding=decoding,
            queued=queued and request.num_computed_tokens == 0,
        )
