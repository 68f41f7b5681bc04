"""Messages with megabytes beside them: whole at the other end, and in nobody's way."""

from __future__ import annotations

import time
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import zmq

from llumnix.wire.base import encode
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import FrontEndLost
from llumnix.wire.outbox import Outbox
from llumnix.wire.to_instance import INSTANCE_MAIL, ToInstance

WAIT_S = 10.0
MB = 1 << 20
HEAVY = FrontEndLost(front_end=1)
LIGHT = FrontEndLost(front_end=2)


class Port:
    """A mailbox, and what it heard: each message with the sizes of what came beside it."""

    def __init__(self, folder: Path, takes_freight: bool = True) -> None:
        self.heard: Queue[tuple[ToInstance, list[bytes]]] = Queue()
        self.address = f"ipc://{folder}/port"
        self.mailbox = Mailbox(
            self.address,
            INSTANCE_MAIL,
            lambda message: self.heard.put((message, [])),
            on_freight=self._on_freight if takes_freight else None,
        )

    def _on_freight(self, message: ToInstance, freight: Any) -> None:
        self.heard.put((message, [bytes(frame) for frame in freight]))


def test_freight_comes_whole_and_in_order(tmp_path: Path) -> None:
    port, outbox = Port(tmp_path), Outbox()
    port.mailbox.start()
    first, second = bytes(range(256)) * 4096, bytearray(b"x" * 300)
    outbox.ship(port.address, HEAVY, [memoryview(first), second])
    assert port.heard.get(timeout=WAIT_S) == (HEAVY, [first, bytes(second)])
    outbox.post(port.address, LIGHT)
    assert port.heard.get(timeout=WAIT_S) == (LIGHT, [])
    outbox.close()
    port.mailbox.close()


def test_what_is_posted_later_does_not_wait_behind_freight(tmp_path: Path) -> None:
    port, outbox = Port(tmp_path), Outbox()
    for _ in range(20):
        outbox.ship(port.address, HEAVY, [bytes(MB)])
    while outbox._letters.qsize():  # until it is all with ZeroMQ
        time.sleep(0.01)
    outbox.post(port.address, LIGHT)
    time.sleep(0.3)  # nobody reads yet, so it comes to lie in the order in which it came
    port.mailbox.start()
    first_three = [port.heard.get(timeout=WAIT_S)[0] for _ in range(3)]
    assert LIGHT in first_three
    for _ in range(18):
        port.heard.get(timeout=WAIT_S)
    outbox.close()
    port.mailbox.close()


def test_way_of_freight_is_closed_with_the_other_one(tmp_path: Path) -> None:
    port, outbox = Port(tmp_path), Outbox()
    outbox.post(port.address, LIGHT)
    outbox.ship(port.address, HEAVY, [b"x"])
    port.mailbox.start()
    assert {port.heard.get(timeout=WAIT_S)[0] for _ in range(2)} == {LIGHT, HEAVY}
    outbox.forget(port.address)
    assert (outbox._sockets, outbox._docks) == ({}, {})
    outbox.close()
    port.mailbox.close()


@pytest.mark.parametrize("takes_freight", [True, False])
def test_mailbox_that_takes_none_drops_it_and_hears_what_follows(tmp_path: Path, takes_freight: bool) -> None:
    port = Port(tmp_path, takes_freight)
    port.mailbox.start()
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.connect(port.address)
        socket.send_multipart([encode(HEAVY), b"x"])
        socket.send(encode(LIGHT))
        heard = [port.heard.get(timeout=WAIT_S)]
        if takes_freight:
            assert heard == [(HEAVY, [b"x"])]
            heard = [port.heard.get(timeout=WAIT_S)]
    assert heard == [(LIGHT, [])]
    assert port.mailbox.malformed == (0 if takes_freight else 1)
    port.mailbox.close()
