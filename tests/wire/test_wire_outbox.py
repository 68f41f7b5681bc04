"""Posting without waiting: now, or as soon as the outbox's own thread comes to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest

from llumnix.wire.mailbox import Mailbox
from llumnix.wire.messages import FrontEndLost, Wire
from llumnix.wire.outbox import Outbox

WAIT_S = 10.0


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    box = Outbox()
    yield box
    box.close()


def receiver(address: str) -> tuple[Mailbox, Queue[Wire]]:
    received: Queue[Wire] = Queue()
    mailbox = Mailbox(address, received.put)
    mailbox.start()
    return mailbox, received


def test_posted_soon_reaches_all_addresses_in_order(tmp_path: Path, outbox: Outbox) -> None:
    addresses = [f"ipc://{tmp_path}/{name}" for name in "ab"]
    boxes = [receiver(address) for address in addresses]
    for number in range(50):
        outbox.post_soon(addresses, FrontEndLost(front_end=number))
    for mailbox, received in boxes:
        assert [received.get(timeout=WAIT_S) for _ in range(50)] == [FrontEndLost(front_end=n) for n in range(50)]
        mailbox.close()


def test_what_was_posted_soon_leaves_before_the_outbox_closes(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/a"
    mailbox, received = receiver(address)
    outbox = Outbox()
    outbox.post_soon((address,), FrontEndLost(front_end=1))
    outbox.close()
    assert received.get(timeout=WAIT_S) == FrontEndLost(front_end=1)
    mailbox.close()


def test_close_ends_the_thread_and_posting_afterwards_is_no_error(tmp_path: Path) -> None:
    outbox = Outbox()
    outbox.post_soon((f"ipc://{tmp_path}/nobody",), FrontEndLost(front_end=1))
    outbox.close()
    outbox.post(f"ipc://{tmp_path}/nobody", FrontEndLost(front_end=2))
    until = time.monotonic() + WAIT_S
    while any(thread.name == "outbox" for thread in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(thread.name == "outbox" for thread in threading.enumerate())
