"""Keys and door for sockets between machines: CURVE encrypts and authenticates, and the doorkeeper counts strangers.

All processes of one server hold one pair of keys, made at launch: whoever has the secret key is one of us. A socket
that connects proves it, and learns whether the other side has it, too. On one machine unix sockets in a private folder
do the same, and there are no keys.

A connection that nothing goes over is looked after by TCP: a firewall in between may forget it, or a machine be gone,
and neither says so.
"""

from __future__ import annotations

import hmac
import logging
import threading
from typing import Any

import msgspec
import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from llumnix.wire.bell import Bell

log = logging.getLogger(__name__)

_ZAP_ENDPOINT = "inproc://zeromq.zap.01"  # RFC 27: where libzmq asks whether a peer may come in
_ZAP_DOMAIN = b"llumnix"  # not empty: nobody comes in where nobody can be asked
_IDLE_S = 30
_LOOK_AGAIN_S = 10
_REFUSALS = {
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "it broke off",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "it does not speak CURVE, or has another key of this server",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "its key is not ours",
}


class CurveKeys(msgspec.Struct, frozen=True):
    """A pair of keys in ZeroMQ's text form (Z85). The secret one appears in no log: `repr` hides it."""

    public: str
    secret: str

    @classmethod
    def make(cls) -> CurveKeys:
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())

    def __repr__(self) -> str:
        return f"CurveKeys({self.public!r}, …)"

    def connecting(self, socket: Any) -> None:
        """For a socket (or, as the default, all sockets of a context) before it connects."""
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.public.encode())
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.public.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.secret.encode())
        _keep_alive(socket)

    def accepting(self, socket: Any) -> None:
        """For a socket (or, as the default, all sockets of a context) before it binds. Needs a `Doorkeeper`."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.secret.encode())
        socket.setsockopt(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        _keep_alive(socket)


def _keep_alive(socket: Any) -> None:
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, _IDLE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, _LOOK_AGAIN_S)


class Doorkeeper:
    """Lets only holders of the keys in to the sockets of one context, in a thread of its own."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: CurveKeys) -> None:
        self.refused = 0
        """Attempts to connect that were turned away; a stranger that keeps trying is counted each time."""
        self._context = context
        self._ours = z85.decode(keys.public.encode())
        self._questions = context.socket(zmq.REP, socket_class=zmq.Socket)
        self._questions.bind(_ZAP_ENDPOINT)
        self._events: dict[zmq.Socket[bytes], str] = {}
        self._lock = threading.Lock()
        self._closing = False
        self._bell = Bell(context)
        self._thread = threading.Thread(target=self._watch, name="doorkeeper", daemon=True)
        self._thread.start()

    def watch(self, socket: Any) -> None:
        """Counts who is turned away at this bound socket."""
        where = bound_address(socket)
        endpoint = f"inproc://door-{id(socket)}"
        socket.monitor(endpoint, sum(_REFUSALS))
        events = self._context.socket(zmq.PAIR, socket_class=zmq.Socket)
        events.connect(endpoint)
        with self._lock:
            self._events[events] = where
            self._bell.ring()

    def close(self) -> None:
        """To be called after the guarded sockets are closed, before their context ends."""
        self._closing = True
        self._bell.ring()
        self._thread.join()
        self._bell.close()
        self._questions.close(linger=0)
        for events in self._events:
            events.close(linger=0)

    def _watch(self) -> None:
        while not self._closing:
            with self._lock:
                watched = dict(self._events)
            poller = zmq.Poller()
            for socket in (self._questions, self._bell.heard, *watched):
                poller.register(socket, zmq.POLLIN)
            for socket, _ in poller.poll():
                if socket is self._questions:
                    self._answer(self._questions.recv_multipart())
                elif socket is self._bell.heard:
                    self._bell.hush()
                else:
                    self._note(watched[socket], recv_monitor_message(socket))

    def _answer(self, question: list[bytes]) -> None:
        """RFC 27. Anything but one key, ours, is refused."""
        version, number, _domain, _address, _identity, mechanism, *credentials = question
        welcome = mechanism == b"CURVE" and len(credentials) == 1 and hmac.compare_digest(credentials[0], self._ours)
        verdict = (b"200", b"OK", b"llumnix") if welcome else (b"400", b"unknown key", b"")
        self._questions.send_multipart([version, number, *verdict, b""])

    def _note(self, where: str, event: Any) -> None:
        why = _REFUSALS.get(event["event"])
        if why is None:  # the end of monitoring
            return
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:  # the 1st, 2nd, 4th, …: one that keeps trying fills no disk
            log.warning("refused a connection to %s: %s (%d so far)", where, why, self.refused)


def bound_address(socket: Any) -> str:
    """Where a socket really listens, which says more than what it was asked to bind."""
    address: bytes = socket.getsockopt(zmq.LAST_ENDPOINT)
    return address.rstrip(b"\0").decode()
