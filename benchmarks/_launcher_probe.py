"""The launcher as it is, with a nursery that starts nothing: what hearing a cluster costs it.

    python benchmarks/_launcher_probe.py PARENT BOOK INSTANCES     (started by control_plane.py; BOOK is a JSON file)

It counts its instances as started, hears their heartbeats, and ends with its parent.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from llumnix import linux
from llumnix.cluster import supervision
from llumnix.cluster.launcher import Launcher
from llumnix.cluster.nursery_messages import Forked, ForkInstance, channel, receive_from_nursery, send
from llumnix.cluster.supervisor import Supervisor
from llumnix.flags import parse_serve
from llumnix.wire.addresses import AddressBook


class EmptyNursery:
    """Answers every order to fork with a process that is none."""

    def __init__(self) -> None:
        self.channel: socket.socket
        self.channel, self._theirs = channel()
        self.pid = 0

    def send(self, order: object) -> None:
        if isinstance(order, ForkInstance):
            send(self._theirs, Forked(child=order.id, pid=1))

    def receive(self) -> Any:
        return receive_from_nursery(self.channel)


def main() -> int:
    linux.die_with_parent(int(sys.argv[1]))
    linux.allow_many_files()
    book = msgspec.json.decode(Path(sys.argv[2]).read_bytes(), type=AddressBook)
    arguments = parse_serve(["--verbose", "--instances", sys.argv[3]])
    launcher: Any = Launcher(arguments, "", book)
    launcher._supervisor = Supervisor(arguments.cluster, "here", 1, parallel_starts=arguments.cluster.instances)
    launcher._nursery = EmptyNursery()
    launcher._loaded = True
    carry_out = launcher._carry_out
    nothing_to_do = (supervision.SpawnScheduler, supervision.Say)
    launcher._carry_out = lambda command: None if isinstance(command, nothing_to_do) else carry_out(command)
    launcher._mailbox.start()
    launcher._tell_supervisor(supervision.TimePassed())
    while True:
        due_s = launcher._supervisor.next_wake_s
        launcher._wait_until(min(time.monotonic() + 1.0, due_s or float("inf")))
        launcher._tell_supervisor(supervision.TimePassed())


if __name__ == "__main__":
    sys.exit(main())
