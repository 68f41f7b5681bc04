"""What can only be done while no block of the KV cache is on the move, and waits for that: a reset of the cache."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from llumnix.engine.vllm.instance.incoming import IncomingRequests
from llumnix.engine.vllm.instance.scheduler import MigrationSupport

_HOLDS = "the caches here are about to be reset"


class Stillness:
    """Called on the engine's main thread only. Every move under way ends by a deadline of its own; none begins while
    somebody waits."""

    def __init__(self, scheduler: MigrationSupport, incoming: IncomingRequests) -> None:
        self._scheduler = scheduler
        self._incoming = incoming
        self._waiting: list[tuple[Callable[[], Any], Future[Any]]] = []

    @property
    def now(self) -> bool:
        """Nothing is reserved for requests from elsewhere, copied by others, or being handed over."""
        return not (self._incoming or self._scheduler.tables.pinned or self._scheduler.places.lent)

    def when_still(self, do: Callable[[], Any]) -> Any:
        """What `do` returns, if that can be now, else a Future of it."""
        if self.now:
            return do()
        done: Future[Any] = Future()
        self._waiting.append((do, done))
        self._incoming.closed = _HOLDS
        return done

    def look(self) -> None:
        """Between two steps, and after each message."""
        if not self._waiting or not self.now:
            return
        waiting, self._waiting = self._waiting, []
        self._incoming.closed = ""
        for do, done in waiting:
            try:
                result = do()
            except Exception as error:  # noqa: BLE001 vLLM's, for whoever asked
                done.set_exception(error)
            else:
                done.set_result(result)
