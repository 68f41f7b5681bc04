"""How an engine's main thread has its workers do something: methods of `WorkerExtension` (worker.py)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

MOST_UNREAD = 4
"""Calls whose answers nobody has read. vLLM's workers put theirs into a ring of ten (`MessageQueue`), where those of
the steps in flight are, too, and wait where it is full."""


class Workers:
    """Relies on `Executor.collective_rpc` with `non_block` (vllm/v1/executor): calls and steps are done in the order in
    which they are sent, and a call whose answer is waited for waits for the step in flight, too, where workers have
    processes of their own. So what needs no answer is told, not asked: a request on its way stands still meanwhile."""

    def __init__(self, executor: Any, count: int, failed: Callable[[BaseException], None]) -> None:
        """`failed` is told when a worker raised an exception at something that it was told."""
        self.count = count
        self._executor = executor
        self._failed = failed
        self._told: deque[Future[Any]] = deque()

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """The answers of all, in the order of their ranks."""
        answers: list[Any] = self._executor.collective_rpc(method, args=arguments)
        return answers

    def tell(self, method: str, *arguments: Any) -> None:
        """Done before whatever is sent to the workers after it."""
        while self._told and self._told[0].done():
            self._told.popleft()
        if len(self._told) == MOST_UNREAD:
            self._told.popleft().result()
        future = self._executor.collective_rpc(method, args=arguments, non_block=True)
        self._told.append(future)
        future.add_done_callback(self._check)

    def _check(self, told: Future[Any]) -> None:
        error = told.exception()
        if error is not None:
            self._failed(error)
