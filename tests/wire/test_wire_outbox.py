"""Posting without waiting: now, or as soon as the outbox's own thread comes to it."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue

import pytest

from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import FrontEndLost
from llumnix.wire.outbox import Outbox
from llumnix.wire.to_instance import INSTANCE_MAIL, ToInstance

WAIT_S = 10.0
PEERS = 1_100  # more than ZeroMQ allows unless it is told to


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    box = Outbox()
    yield box
    box.close()


def receiver(address: str) -> tuple[Mailbox[ToInstance], Queue[ToInstance]]:
    received: Queue[ToInstance] = Queue()
    mailbox = Mailbox(address, INSTANCE_MAIL, received.put)
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


def test_outbox_that_closes_when_nobody_reads_any_more_waits_for_no_late_reader(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/late"
    outbox = Outbox()
    outbox.post(address, FrontEndLost(front_end=1))
    closing = threading.Thread(target=outbox.close, args=(True,))
    closing.start()
    mailbox, received = receiver(address)
    closing.join(WAIT_S)
    with pytest.raises(Empty):
        received.get(timeout=0.3)
    mailbox.close()


@pytest.mark.parametrize("was_there", [True, False])
def test_whoever_has_ended_is_not_waited_for_and_who_is_still_there_is(
    tmp_path: Path, was_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llumnix.wire.outbox._LINGER_MS", 20_000)
    gone, there = f"ipc://{tmp_path}/gone", f"ipc://{tmp_path}/there"
    outbox = Outbox()
    if was_there:
        mailbox, _ = receiver(gone)
        outbox.post(gone, FrontEndLost(front_end=1))
        mailbox.close()
    mailbox, received = receiver(there)
    for number in range(100):
        for address in (gone, there):
            outbox.post(address, FrontEndLost(front_end=number))
    began = time.monotonic()
    outbox.close()
    assert time.monotonic() < began + WAIT_S
    assert [received.get(timeout=WAIT_S) for _ in range(100)][-1] == FrontEndLost(front_end=99)
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


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * PEERS
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"only {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_writes_to_more_peers_than_a_thousand_and_keeps_nothing_of_those_it_forgets(
    tmp_path: Path, outbox: Outbox, many_files: None
) -> None:
    before = open_files()
    addresses = [f"ipc://{tmp_path}/i{number}" for number in range(PEERS)]
    for address in addresses:
        outbox.post(address, FrontEndLost(front_end=1))
    assert open_files() >= before + PEERS
    for address in addresses:
        outbox.forget(address)
    until = time.monotonic() + WAIT_S
    while open_files() > before + 10 and time.monotonic() < until:  # ZeroMQ's thread closes them
        time.sleep(0.01)
    assert open_files() <= before + 10


def test_what_was_to_be_sent_soon_opens_no_way_to_a_peer_that_is_gone(tmp_path: Path, outbox: Outbox) -> None:
    gone, other = f"ipc://{tmp_path}/gone", f"ipc://{tmp_path}/other"
    mailbox, received = receiver(other)
    for number in range(50):
        outbox.post_soon((gone, other), FrontEndLost(front_end=number))
        outbox.forget(gone)
    for number in range(50):
        assert received.get(timeout=WAIT_S) == FrontEndLost(front_end=number)
    outbox.post_soon((other,), FrontEndLost(front_end=50))  # the last word on the other one has been heard
    received.get(timeout=WAIT_S)
    assert list(outbox._sockets) == [other]
    assert not outbox._forgotten
    mailbox.close()


def test_successor_at_the_address_of_one_that_is_gone_hears_what_is_posted_after_that(
    tmp_path: Path, outbox: Outbox
) -> None:
    address = f"ipc://{tmp_path}/front-0"
    for number in range(50):
        outbox.post_soon((address,), FrontEndLost(front_end=number))
    outbox.forget(address)
    outbox.post_soon((address,), FrontEndLost(front_end=50))
    outbox.post_soon((address,), FrontEndLost(front_end=51))
    mailbox, received = receiver(address)
    heard = [received.get(timeout=WAIT_S) for _ in range(2)]
    assert heard == [FrontEndLost(front_end=50), FrontEndLost(front_end=51)]
    mailbox.close()


@pytest.mark.parametrize("nowhere", ["", "nowhere", "tcp://nowhere", "ipc://"])
def test_address_that_is_none_costs_that_message_alone(tmp_path: Path, outbox: Outbox, nowhere: str) -> None:
    address = f"ipc://{tmp_path}/a"
    mailbox, received = receiver(address)
    outbox.post(nowhere, FrontEndLost(front_end=1))
    outbox.post_soon((nowhere, address), FrontEndLost(front_end=2))
    assert received.get(timeout=WAIT_S) == FrontEndLost(front_end=2)
    assert (outbox.dropped, len(outbox._sockets)) == (2, 1)
    mailbox.close()
