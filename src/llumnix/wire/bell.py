"""A bell: it wakes a thread that waits at ZeroMQ's sockets, which look at nothing else."""

from __future__ import annotations

import zmq


class Bell:
    """For one thread that waits at `heard` beside its other sockets. Others ring it one at a time."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        endpoint = f"inproc://bell-{id(self)}"
        self.heard = context.socket(zmq.PAIR, socket_class=zmq.Socket)
        self.heard.bind(endpoint)
        self._rope = context.socket(zmq.PAIR, socket_class=zmq.Socket)
        self._rope.connect(endpoint)

    def ring(self) -> None:
        self._rope.send(b"", zmq.NOBLOCK)

    def hush(self) -> None:
        """By the thread that was woken, so that it can wait again."""
        self.heard.recv()

    def close(self) -> None:
        """When nobody waits at it any more."""
        for socket in (self._rope, self.heard):
            socket.close(linger=0)
