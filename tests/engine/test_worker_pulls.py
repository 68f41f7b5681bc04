"""What a worker remembers of its pulls."""

from __future__ import annotations

import multiprocessing
import queue
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from llumnix.engine.vllm.instance.worker import WorkerExtension
from llumnix.transport.port import PullResult
from llumnix.types import RequestId
from llumnix.wire.addresses import AddressBook
from llumnix.wire.curve import CurveKeys
from llumnix.wire.outbox import Outbox
from llumnix.wire.to_worker import PullBlocks

ORDER = PullBlocks(
    request=RequestId("r"),
    epoch=1,
    stage=0,
    addresses=("somewhere",),
    source_blocks=(7,),
    target_blocks=(1,),
    timeout_s=1.0,
)


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
    made.llumnix_take(ORDER)
    threads[0].join(5.0)
    assert made._llumnix_pulls == {}


@pytest.mark.parametrize("keys", [None, CurveKeys.make()], ids=["one machine", "several"])
def test_orders_have_a_thread_of_their_own(
    keys: CurveKeys | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own a worker's main thread may be in the middle of a step."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # it sets one
    pulled: queue.SimpleQueue[tuple[Any, str]] = queue.SimpleQueue()
    made = worker(lambda *order, **_: pulled.put((order, threading.current_thread().name)))
    transport = made._llumnix_transport
    made.device = torch.device("cuda")  # nothing is allocated there
    book = AddressBook(run_dir="", launcher="", scheduler="", fronts=(), keys=keys)
    made.llumnix_open(book, "nobody", b"", moves=False, ways=[], max_incoming=1)
    made._llumnix_transport = transport
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    outbox = Outbox(keys)
    outbox.post(made.llumnix_listen(), ORDER)
    order, thread = pulled.get(timeout=30.0)
    assert order == ("somewhere", (7,), (1,), 1.0)
    assert thread.startswith("mailbox")
    outbox.close()
    assert made._llumnix_mailbox is not None
    made._llumnix_mailbox.close()
    made._llumnix_outbox.close()
