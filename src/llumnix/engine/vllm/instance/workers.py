"""How an engine's main thread has its workers do something: methods of `WorkerExtension` (worker.py)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import vllm.envs as envs

from llumnix.wire.to_worker import ToWorker

MOST_UNREAD = 4
"""Calls whose answers nobody has read. vLLM's workers put theirs into a ring of ten (`MessageQueue`), where those of
the steps in flight are, too, and wait where it is full."""


class Workers:
    """Relies on `Executor.collective_rpc` with `non_block` (vllm/v1/executor): calls and steps are done in the order in
    which they are sent, and a call whose answer is waited for waits for the step in flight, too, where workers have
    processes of their own. So what needs no answer is told, not asked: a request on its way stands still meanwhile. And
    what has nothing to do with steps is ordered of a thread that each such worker has beside them: a pull that is told
    would begin when the steps that were sent before it are over."""

    def __init__(self, executor: Any, count: int, failed: Callable[[BaseException], None]) -> None:
        """`failed` is told when a worker raised an exception at something that it was told."""
        self.count = count
        self._executor = executor
        self._failed = failed
        self._told: deque[Future[Any]] = deque()
        self._mailboxes: list[str] = []
        self._post: Callable[[str, ToWorker], None] | None = None

    def open(self, post: Callable[[str, ToWorker], None], *arguments: Any) -> list[Any]:
        """What `llumnix_open` answers to these. From here on they take orders, which `post` brings to mailboxes."""
        self._post = post
        addresses = self.ask("llumnix_open", *arguments)
        self._mailboxes = [address for address in self.ask("llumnix_listen") if address]
        return addresses

    def order(self, order: ToWorker) -> None:
        """From any thread. Carried out at once, in the order of the orders, whatever steps are in flight."""
        if not self._mailboxes:  # a worker in this process: done when the call returns
            self._executor.collective_rpc("llumnix_take", args=(order,), non_block=True).add_done_callback(self._check)
        for address in self._mailboxes:
            assert self._post is not None
            self._post(address, order)

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """The answers of all, in the order of their ranks. Raises TimeoutError: a worker hangs."""
        answers: list[Any] = self._executor.collective_rpc(method, timeout=_longest_wait_s(), args=arguments)
        return answers

    def tell(self, method: str, *arguments: Any) -> None:
        """Done before whatever is sent to the workers after it. Raises TimeoutError: a worker hangs."""
        while self._told and self._told[0].done():
            self._told.popleft()
        if len(self._told) == MOST_UNREAD:
            self._told.popleft().result()
        patience_s = (1 + MOST_UNREAD) * _longest_wait_s()  # from now on, and steps come before it
        future = self._executor.collective_rpc(method, timeout=patience_s, args=arguments, non_block=True)
        self._told.append(future)
        future.add_done_callback(self._check)

    def _check(self, told: Future[Any]) -> None:
        error = told.exception()
        if error is not None:
            self._failed(error)


def _longest_wait_s() -> float:
    """As vLLM waits for a step, which an answer may have to wait for, too."""
    return float(envs.VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS)
