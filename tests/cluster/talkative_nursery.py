"""Speaks like a nursery that has news for each order, and tells it before it reads the next one."""

from __future__ import annotations

import socket
import sys

from llumnix.cluster.nursery_messages import Forked, ForkInstance, receive_from_launcher, send

channel = socket.socket(fileno=int(sys.argv[1]))
while (order := receive_from_launcher(channel)) is not None:
    assert isinstance(order, ForkInstance)
    send(channel, Forked(child=order.id, pid=order.index))
