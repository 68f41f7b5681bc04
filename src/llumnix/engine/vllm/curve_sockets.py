"""vLLM's request and token sockets under the keys of the server, where they cross machines.

A front end makes its sockets itself (client_setup.py). An engine's are made deep in vLLM's threads, which offer no
way to set an option before a socket connects: so the one function that makes them is replaced in that process.
"""

from __future__ import annotations

from typing import Any

import zmq
from vllm.v1.engine import core

from llumnix.wire.curve import CurveKeys


def guard_engine_sockets(keys: CurveKeys) -> None:
    """From now on every socket of vLLM's engine core in this process proves to hold the keys, and asks for the same."""
    engine: Any = core  # its own import of the function is what is replaced
    make_zmq_socket = engine.make_zmq_socket

    def make_guarded_socket(context: Any, path: str, socket_type: Any, **options: Any) -> Any:
        keys.connecting(context)
        socket = make_zmq_socket(context, path, socket_type, **options)
        require_curve(socket)
        return socket

    engine.make_zmq_socket = make_guarded_socket


def require_curve(socket: Any) -> None:
    """Raises RuntimeError for a socket that took no keys: pyzmq passes over options that a socket refuses."""
    if socket.getsockopt(zmq.MECHANISM) != zmq.CURVE:
        raise RuntimeError("a socket between machines would not be guarded")
