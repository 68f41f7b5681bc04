"""What workers are told and asked, with vLLM's own futures over answers that come late."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.executor.multiproc_executor import FutureWrapper

from llumnix.engine.vllm.instance.workers import MOST_UNREAD, Workers
from llumnix.types import RequestId
from llumnix.wire.to_worker import CancelPulls, ToWorker


class Executor:
    """Like `MultiprocExecutor`: answers are read in order, and only when somebody waits for one."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.read: list[str] = []
        self.broken = ""
        self.patience_s: float | None = None
        self.answers: dict[str, list[Any]] = {}
        self._futures: deque[FutureWrapper] = deque()

    def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple[Any, ...] = (), non_block: bool = False
    ) -> Any:
        self.sent.append(method)
        self.patience_s = timeout

        def response() -> list[Any]:
            self.read.append(method)
            if method in self.answers:
                return self.answers[method]
            if method == self.broken:
                raise RuntimeError("it broke")
            return [args]

        future: Any = FutureWrapper(self._futures, response)
        return future if non_block else future.result()


@pytest.fixture
def executor() -> Executor:
    return Executor()


def test_nobody_waits_for_what_is_told(executor: Executor) -> None:
    workers = Workers(executor, 2, lambda error: pytest.fail(str(error)))
    executor.collective_rpc("step", non_block=True)
    workers.tell("llumnix_pull", 1, 2)
    assert (executor.sent, executor.read) == (["step", "llumnix_pull"], [])
    assert workers.ask("llumnix_sampler_state", "r") == [("r",)]
    assert executor.read == ["step", "llumnix_pull", "llumnix_sampler_state"]


def test_a_worker_that_hangs_is_waited_for_as_long_as_for_a_step(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "7")
    workers = Workers(executor, 2, lambda error: pytest.fail(str(error)))
    workers.ask("llumnix_sampler_state", "r")
    assert executor.patience_s == 7
    workers.tell("llumnix_install", "r")
    assert executor.patience_s == 7 * (1 + MOST_UNREAD)


def test_answers_that_nobody_reads_do_not_fill_the_ring(executor: Executor) -> None:
    workers = Workers(executor, 2, lambda error: pytest.fail(str(error)))
    for number in range(100):
        workers.tell(f"call {number}")
        assert len(executor.sent) - len(executor.read) <= MOST_UNREAD
    assert executor.sent == [f"call {number}" for number in range(100)]


def test_worker_that_fails_at_what_it_was_told_is_heard(executor: Executor) -> None:
    failures: list[BaseException] = []
    workers = Workers(executor, 2, failures.append)
    executor.broken = "llumnix_pull"
    workers.tell("llumnix_pull")
    assert failures == []
    workers.ask("anything")
    assert [str(failure) for failure in failures] == ["it broke"]


CANCEL = CancelPulls(request=RequestId("r"), epoch=1)


def test_orders_go_to_the_mailboxes_of_workers_that_have_processes_of_their_own(executor: Executor) -> None:
    posted: list[tuple[str, ToWorker]] = []
    workers = Workers(executor, 2, lambda error: pytest.fail(str(error)))
    executor.answers = {"llumnix_open": ["kv-0", "kv-1"], "llumnix_listen": ["ipc://0", "ipc://1"]}
    assert workers.open(lambda address, order: posted.append((address, order)), "book") == ["kv-0", "kv-1"]
    sent = list(executor.sent)
    workers.order(CANCEL)
    assert posted == [("ipc://0", CANCEL), ("ipc://1", CANCEL)]
    assert executor.sent == sent, "nothing waits behind the steps"


def test_a_worker_in_the_engine_s_own_process_is_called(executor: Executor) -> None:
    workers = Workers(executor, 1, lambda error: pytest.fail(str(error)))
    executor.answers = {"llumnix_open": ["kv-0"], "llumnix_listen": [""]}
    workers.open(lambda address, order: pytest.fail("nobody listens"), "book")
    workers.order(CANCEL)
    assert executor.sent[-1] == "llumnix_take"
