"""What a worker remembers of its pulls."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from llumnix.engine.vllm.instance.worker import WorkerExtension
from llumnix.transport.port import PullResult


def worker(pull: Any) -> WorkerExtension:
    made = WorkerExtension()
    made.rank = 0
    made._llumnix_transport = SimpleNamespace(pull=pull)
    made._llumnix_outbox = SimpleNamespace(post=lambda *_: None)  # type: ignore[assignment]
    made._llumnix_control = ""
    made._llumnix_pulls = {}
    made._llumnix_lock = threading.Lock()
    return made


def test_a_pull_that_ends_before_its_start_returned_is_not_remembered() -> None:
    threads: list[threading.Thread] = []

    def pull(*_: Any, on_done: Any, on_released: Any) -> object:
        threads.append(threading.Thread(target=on_done, args=(PullResult(ok=True),)))
        threads[0].start()
        threads[0].join(0.1)
        return object()

    made = worker(pull)
    made.llumnix_pull(("r", 1, 0), ["somewhere"], [1], [1], 1.0)
    threads[0].join(5.0)
    assert made._llumnix_pulls == {}
