"""vLLM's request and token sockets where they cross machines: under the keys of the server, and watched.

A front end makes its sockets itself (client_setup.py). An engine's are made deep in vLLM's threads, which offer no
way to set an option before a socket connects: so the one function that makes them is replaced in that process.

Requests and tokens are sent once and never numbered. ZeroMQ connects again when a connection breaks, and says nothing
of what was lost in it: a hole in a stream. So an instance whose connection to a living front end broke ends itself, and
its streams go on elsewhere from what their clients have. Whether it lives shows when it can be reached again: of one
that died the launcher tells before it starts the next one, however late it notices.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from time import monotonic
from typing import Any

import zmq
from vllm.v1.engine import core
from zmq.utils.monitor import parse_monitor_message

from llumnix.wire.addresses import AddressBook
from llumnix.wire.curve import CurveKeys

_GRACE_S = 3.0  # from the return of a line, in which we hear that it is another front end at the same address
_LONGEST_S = 60.0  # without a line and without a word: by then everybody counts this instance as lost
_POLL_S = 0.1


class Lines:
    """Connections to front ends. `excuse` may be called from any thread."""

    def __init__(
        self, on_broken: Callable[[int], None], grace_s: float = _GRACE_S, longest_s: float = _LONGEST_S
    ) -> None:
        self._on_broken = on_broken
        self._grace_s = grace_s
        self._longest_s = longest_s
        self._events: dict[zmq.Socket[bytes], int] = {}
        self._broken_s: dict[int, float] = {}
        self._back_s: dict[int, float] = {}
        self._excused_s: dict[int, float] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, context: Any, socket: Any, front_end: int) -> None:
        """From now on until the end of `context`, in which `socket` is. Nobody looks before there is one to watch: an
        engine's workers are made before its sockets, on GPUs by a fork, and who has threads must not fork."""
        endpoint = f"inproc://line-{id(socket)}"
        socket.monitor(endpoint, zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        events = context.socket(zmq.PAIR)
        events.connect(endpoint)
        with self._lock:
            self._events[events] = front_end
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lines", daemon=True)
                self._thread.start()

    def excuse(self, front_end: int) -> None:
        """This front end died: that its connections break is no loss, for nobody reads them."""
        self._excused_s[front_end] = monotonic()

    def _run(self) -> None:
        while True:
            with self._lock:
                watched = dict(self._events)
            for events, front_end in watched.items():
                self._read(events, front_end)
            now = monotonic()
            for front_end, since_s in list(self._broken_s.items()):
                excused = self._excused_s.get(front_end, -math.inf) >= since_s - self._grace_s
                due_s = min(since_s + self._longest_s, self._back_s.get(front_end, math.inf) + self._grace_s)
                if excused or now >= due_s:
                    del self._broken_s[front_end]
                    self._back_s.pop(front_end, None)
                if now >= due_s and not excused:
                    self._on_broken(front_end)
            time.sleep(_POLL_S)

    def _read(self, events: zmq.Socket[bytes], front_end: int) -> None:
        try:
            while True:
                event = parse_monitor_message(events.recv_multipart(zmq.NOBLOCK))["event"]
                if event == zmq.EVENT_DISCONNECTED:
                    self._broken_s.setdefault(front_end, monotonic())
                elif front_end in self._broken_s:
                    self._back_s.setdefault(front_end, monotonic())
        except zmq.Again:
            return
        except zmq.ContextTerminated:  # and it waits for its last socket, this one
            with self._lock:
                del self._events[events]
            events.close(linger=0)


def guard_engine_sockets(book: AddressBook, keys: CurveKeys) -> Lines:
    """From now on every socket of vLLM's engine core in this process proves to hold the keys, asks for the same, and
    ends the process when its connection is lost."""
    lines = Lines(_end)
    front_ends = {address: n for n, front in enumerate(book.fronts) for address in (front.requests, front.tokens)}
    engine: Any = core  # its own import of the function is what is replaced
    make_zmq_socket = engine.make_zmq_socket

    def make_guarded_socket(context: Any, path: str, socket_type: Any, **options: Any) -> Any:
        keys.connecting(context)
        socket = make_zmq_socket(context, path, socket_type, **options)
        require_curve(socket)
        lines.watch(context, socket, front_ends[path])
        return socket

    engine.make_zmq_socket = make_guarded_socket
    return lines


def require_curve(socket: Any) -> None:
    """Raises RuntimeError for a socket that took no keys: pyzmq passes over options that a socket refuses."""
    if socket.getsockopt(zmq.MECHANISM) != zmq.CURVE:
        raise RuntimeError("a socket between machines would not be guarded")


def _end(front_end: int) -> None:
    print(f"The connection to front end {front_end} broke, and tokens may be lost in it", file=sys.stderr, flush=True)
    os._exit(1)
