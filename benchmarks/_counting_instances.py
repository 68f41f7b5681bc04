"""Instances that only count: many in one process, each with a mailbox of its own, reporting as real ones do.

    python benchmarks/_counting_instances.py PARENT < spec.json     (started by control_plane.py)

A request holds blocks and makes a token per step; steps of all instances take the same time. There is no engine, so
that a machine with few cores can carry the messages of a large cluster.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import deque
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import NoReturn

import msgspec
import zmq

from llumnix import linux
from llumnix.config import ClusterConfig
from llumnix.control.orders import MoveOutcome
from llumnix.control.pace import TOLD_LAUNCHER_S, ReportPace
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, RequestId
from llumnix.wire.addresses import AddressBook
from llumnix.wire.base import InstanceInfo, decode, encode
from llumnix.wire.news import Report
from llumnix.wire.outbox import Mail
from llumnix.wire.to_instance import INSTANCE_MAIL, MoveOut
from llumnix.wire.to_scheduler import MoveAnswer

BLOCK_TOKENS = 16


class Spec(msgspec.Struct, frozen=True):
    book: AddressBook
    instances: tuple[InstanceId, ...]
    requests: dict[InstanceId, str]
    """Where each instance of the cluster takes requests: the socket of its process."""
    total_blocks: int
    step_s: float
    cluster: ClusterConfig


class Request(msgspec.Struct):
    instance: InstanceId
    """Whom it is for."""
    id: RequestId
    tokens: int
    left: int
    dispatched: bool
    """By the front end; else it was moved here."""


@dataclass(slots=True)
class Running:
    request: Request

    @property
    def blocks(self) -> int:
        return self.request.tokens // BLOCK_TOKENS + 1


class Lines:
    """An instance's own sockets, as a real one has, in the one ZeroMQ context that all of a process share."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self.inbox = context.socket(zmq.PULL)
        self.inbox.bind(address)
        self._context = context
        self._to: dict[str, zmq.Socket[bytes]] = {}

    def post(self, address: str, message: Mail) -> None:
        self.send(address, encode(message))

    def send(self, address: str, frame: bytes) -> None:
        socket = self._to.get(address)
        if socket is None:
            socket = self._to[address] = self._context.socket(zmq.PUSH)
            socket.connect(address)
        socket.send(frame)


class CountingInstance:
    def __init__(self, spec: Spec, instance: InstanceId, index: int, lines: Lines) -> None:
        self._spec = spec
        self.id = instance
        self.running: list[Running] = []
        self.waiting: deque[Running] = deque()
        self.dispatched = self.seq = self.migrations_in = self.migrations_out = self.ended = 0
        self.moves: deque[MoveOut] = deque()
        self._lines = lines
        address = spec.book.instance(instance)
        self.info = InstanceInfo(
            id=instance, index=index, slot=index, pid=os.getpid(), node="", control=address, data="none"
        )
        self._audience = (spec.book.scheduler, *spec.book.all_front_ends)
        self._pace = ReportPace(spec.cluster, spec.cluster.instances)
        self._looked_s = self._told_launcher_s = 0.0
        self._changed = True

    def read(self) -> None:
        """What came by mail."""
        while self._lines.inbox.poll(0):
            message = decode(self._lines.inbox.recv(), INSTANCE_MAIL)
            if isinstance(message, MoveOut):
                self.moves.append(message)

    @property
    def free_blocks(self) -> int:
        return self._spec.total_blocks - sum(each.blocks for each in self.running)

    def take(self, request: Request) -> None:
        self.dispatched += request.dispatched
        self.migrations_in += not request.dispatched
        self.waiting.append(Running(request))
        self._changed = True

    def step(self) -> None:
        while self.waiting and self.waiting[0].blocks <= self.free_blocks:
            self.running.append(self.waiting.popleft())
        for each in self.running:
            each.request.tokens += 1
            each.request.left -= 1
        self.ended += sum(not each.request.left for each in self.running)
        self._changed |= bool(self.running)
        self.running = [each for each in self.running if each.request.left]

    def give_away(self) -> list[tuple[InstanceId, Request]]:
        """What the scheduler asked for since, shortest first, as victims are chosen."""
        given: list[tuple[InstanceId, Request]] = []
        while self.moves:
            order = self.moves.popleft()
            count = order.order.wanted.count
            self.running.sort(key=lambda each: each.blocks)
            leaving, self.running = self.running[:count], self.running[count:]
            given += [(order.target.id, msgspec.structs.replace(e.request, dispatched=False)) for e in leaving]
            self.migrations_out += len(leaving)
            why_not = None if leaving else "nothing runs here"
            outcome = MoveOutcome(order=order.order, source=self.id, request=None, why_not=why_not)
            self._lines.post(order.reply_to, MoveAnswer(outcome=outcome))
        return given

    def report(self, now: float) -> None:
        """At the pace of a cluster of this size, and a heartbeat when nothing changes."""
        quiet_s = now - self._looked_s
        if quiet_s < (self._spec.cluster.report_interval_s if self._changed else self._pace.pace.heartbeat_s):
            return
        self._looked_s, self._changed = now, False
        snapshot = self._snapshot()
        audience = self._audience if self._pace.sends(now, snapshot) else ()
        if now >= self._told_launcher_s + TOLD_LAUNCHER_S:
            self._told_launcher_s = now
            audience = (*audience, self._spec.book.launcher)
        if audience:
            frame = encode(Report(info=self.info, snapshot=snapshot))
            for address in audience:
                self._lines.send(address, frame)

    def _snapshot(self) -> InstanceSnapshot:
        self.seq += 1
        head = self.waiting[0].blocks if self.waiting else 0
        free = self.free_blocks
        return InstanceSnapshot(
            id=self.id,
            at=time.monotonic(),
            seq=self.seq,
            total_blocks=self._spec.total_blocks,
            free_blocks=free,
            block_tokens=BLOCK_TOKENS,
            running=len(self.running),
            waiting=len(self.waiting),
            head_of_line_blocks=head,
            queued_blocks=sum(each.blocks for each in self.waiting),
            short_blocks=max(0, len(self.running) - free),
            smallest_running_blocks=min((each.blocks for each in self.running), default=0),
            migrations_in=self.migrations_in,
            migrations_out=self.migrations_out,
            ended=self.ended,
            dispatches_seen=(self.dispatched,),
        )


class Host:
    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 16_384)
        self._instances = {
            each: CountingInstance(spec, each, int(each[1:]), Lines(self._context, spec.book.instance(each)))
            for each in spec.instances
        }
        self._inbox = self._context.socket(zmq.PULL)
        self._inbox.bind(spec.requests[spec.instances[0]])
        self._decoder = msgspec.msgpack.Decoder(Request)
        self._others: dict[str, zmq.Socket[bytes]] = {}

    def run(self) -> NoReturn:
        """Each instance steps at moments of its own, as engines do."""
        rng = random.Random(self._spec.instances[0])
        due = [(time.monotonic() + rng.random() * self._spec.step_s, each) for each in self._instances]
        heapify(due)
        while True:
            due_s, first = due[0]
            self._take_requests(until_s=due_s)
            now = time.monotonic()
            instance = self._instances[first]
            instance.read()
            instance.step()
            for target, request in instance.give_away():
                self._send(target, msgspec.structs.replace(request, instance=target))
            instance.report(now)
            heapreplace(due, (max(now, due_s + self._spec.step_s), first))

    def _take_requests(self, until_s: float) -> None:
        while True:
            wait_ms = max(0, int((until_s - time.monotonic()) * 1000))
            if not self._inbox.poll(wait_ms):
                return
            request = self._decoder.decode(self._inbox.recv())
            self._instances[request.instance].take(request)

    def _send(self, target: InstanceId, request: Request) -> None:
        address = self._spec.requests[target]
        socket = self._others.get(address)
        if socket is None:
            socket = self._others[address] = self._context.socket(zmq.PUSH)
            socket.connect(address)
        socket.send(msgspec.msgpack.encode(request))


def main() -> int:
    linux.die_with_parent(int(sys.argv[1]))
    linux.allow_many_files()
    Host(msgspec.json.decode(sys.stdin.buffer.read(), type=Spec)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
