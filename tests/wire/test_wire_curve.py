"""Guarded mailboxes: those who hold the keys are heard, everybody else is refused and counted."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from llumnix.wire.base import encode
from llumnix.wire.curve import CurveKeys
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import FrontEndLost
from llumnix.wire.outbox import Outbox
from llumnix.wire.to_instance import INSTANCE_MAIL, ToInstance

KEYS = CurveKeys.make()
MESSAGE = FrontEndLost(front_end=3)
WAIT_S = 30.0


class Guarded:
    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[ToInstance] = queue.SimpleQueue()
        self.mailbox = Mailbox("tcp://127.0.0.1:*", INSTANCE_MAIL, self.inbox.put, KEYS)
        self.mailbox.start()

    def heard(self) -> ToInstance:
        return self.inbox.get(timeout=WAIT_S)

    def wait_for_refusal(self) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not self.mailbox.refused:
            assert time.monotonic() < deadline_s, "nobody was refused"
            time.sleep(0.01)


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    guarded = Guarded()
    yield guarded
    guarded.mailbox.close()


@pytest.fixture
def stranger() -> Iterator[Callable[[str, CurveKeys | None, CurveKeys | None], None]]:
    """Connects, with these keys of its own and believing in these of the server, and sends a well-formed message."""
    context = zmq.Context()
    sockets: list[zmq.Socket[bytes]] = []

    def send(address: str, own: CurveKeys | None, server: CurveKeys | None) -> None:
        socket = context.socket(zmq.PUSH)
        sockets.append(socket)
        if own is not None and server is not None:
            socket.setsockopt(zmq.CURVE_SERVERKEY, server.public.encode())
            socket.setsockopt(zmq.CURVE_PUBLICKEY, own.public.encode())
            socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode())
        socket.connect(address)
        socket.send(encode(MESSAGE))

    yield send
    for socket in sockets:
        socket.close(linger=0)
    context.term()


def test_address_is_known_once_the_system_chose_a_port(guarded: Guarded) -> None:
    assert int(guarded.mailbox.address.rpartition(":")[2]) > 0


def test_holder_of_the_keys_is_heard(guarded: Guarded) -> None:
    outbox = Outbox(KEYS)
    outbox.post(guarded.mailbox.address, MESSAGE)
    assert guarded.heard() == MESSAGE
    outbox.close()
    assert guarded.mailbox.refused == 0


OTHER = CurveKeys.make()


@pytest.mark.parametrize(
    ("own", "server"),
    [(None, None), (OTHER, OTHER), (OTHER, KEYS), (CurveKeys(KEYS.public, OTHER.secret), KEYS)],
    ids=["no-keys", "wrong-server", "right-server-but-own-key", "our-public-key-without-the-secret"],
)
def test_stranger_is_refused_and_counted_and_others_are_still_heard(
    guarded: Guarded,
    stranger: Callable[[str, CurveKeys | None, CurveKeys | None], None],
    own: CurveKeys | None,
    server: CurveKeys | None,
) -> None:
    stranger(guarded.mailbox.address, own, server)
    guarded.wait_for_refusal()
    test_after = FrontEndLost(front_end=4)
    outbox = Outbox(KEYS)
    outbox.post(guarded.mailbox.address, test_after)
    assert guarded.heard() == test_after
    outbox.close()
    assert guarded.inbox.empty()


def test_nobody_without_the_key_reads_what_is_posted() -> None:
    """A process that took over a mailbox's port is not told anything."""
    context = zmq.Context()
    impostor = context.socket(zmq.PULL)
    port = impostor.bind_to_random_port("tcp://127.0.0.1")
    outbox = Outbox(KEYS)
    outbox.post(f"tcp://127.0.0.1:{port}", MESSAGE)
    assert impostor.poll(500) == 0
    outbox.close()
    impostor.close(linger=0)
    context.term()


def test_secret_key_shows_in_no_log() -> None:
    assert KEYS.secret not in repr(KEYS)
    assert KEYS.secret not in f"{KEYS} {[KEYS]}"


def timers(port: int) -> set[str]:
    """Of the connections to or from this port: of what the kernel waits for."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = f":{port:04X}"
    return {timer[:2] for _, ours, theirs, state, _, timer, *_ in lines if state == "01" and ends in ours[-5:] + theirs}


def test_connection_that_nothing_goes_over_is_looked_after_at_both_ends(guarded: Guarded) -> None:
    outbox = Outbox(KEYS)
    outbox.post(guarded.mailbox.address, MESSAGE)
    guarded.heard()
    port = int(guarded.mailbox.address.rpartition(":")[2])
    deadline_s = time.monotonic() + WAIT_S
    while timers(port) != {"02"}:  # it is to be asked again whether the other end is there
        assert time.monotonic() < deadline_s, timers(port)
        time.sleep(0.05)
    outbox.close()


@pytest.mark.parametrize("prepare", [KEYS.connecting, KEYS.accepting])
@pytest.mark.parametrize("kind", [zmq.Context, zmq.asyncio.Context])
def test_sockets_that_vllm_makes_in_a_guarded_context_are_looked_after(
    kind: Callable[[], zmq.Context[zmq.Socket[bytes]]], prepare: Callable[[object], None]
) -> None:
    context = kind()
    prepare(context)
    socket = context.socket(zmq.PULL)
    assert socket.getsockopt(zmq.TCP_KEEPALIVE) == 1
    assert 0 < socket.getsockopt(zmq.TCP_KEEPALIVE_IDLE) < 60  # type: ignore[operator]
    socket.close()
    context.term()
