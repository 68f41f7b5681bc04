"""A room on a node of a Ray cluster: the actor that keeps one instance's nursery there and passes on its messages.

Ray starts and ends it, and reserves its CPUs and GPUs. It only relays what nursery and launcher say to each other
(nursery_messages.py); tokens, load reports and migrations never come near it. What crosses Ray are bytes and words
of our own making.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import ExitStack

import msgspec
import ray

from llumnix.cluster.children import NurseryProcess
from llumnix.cluster.environment import node_environment
from llumnix.cluster.logs import HOUSEKEEPING_INTERVAL_S, LogFolder
from llumnix.cluster.nursery_messages import (
    Exited,
    Failed,
    ForkInstance,
    FromNursery,
    LoadEngine,
    SignalChild,
    decode_order,
    encode,
)
from llumnix.cluster.ports import LOOPBACK
from llumnix.cluster.run_dir import private_run_dir

_NURSERY_ENDS_S = 4.0  # in which it ends what its instance left running


class NodeRoom:
    """All methods run on the actor's one event loop; its thread lives as long as the actor."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._nursery: NurseryProcess | None = None
        self._said: list[bytes] = []
        self._changed = asyncio.Event()
        self._housekeeping: asyncio.Task[None] | None = None

    async def open(self, prepare: bytes, environment: dict[str, str], instance: str) -> str:
        """Starts a nursery for `instance`, told what the launcher said, made fit for this node. Returns its name."""
        self._nursery_log = f"nursery-{instance}"
        asked = decode_order(prepare)
        assert isinstance(asked, LoadEngine)
        node = node_name()
        self._nursery, here = self._start(asked, node, node_environment(os.environ, environment))
        asyncio.get_running_loop().add_reader(self._nursery.channel, self._hear)
        self._nursery.send(here)
        self._housekeeping = asyncio.create_task(self._keep_house(instance))
        return node

    async def send(self, message: bytes) -> None:
        """`ForkInstance` or `SignalChild`."""
        order = decode_order(message)
        assert isinstance(order, ForkInstance | SignalChild)
        if self._nursery is not None:
            self._nursery.send(order)

    async def receive(self, seen: int) -> list[bytes]:
        """What the nursery said after its first `seen` messages; waits until there is something."""
        while len(self._said) <= seen:
            self._changed.clear()
            await self._changed.wait()
        return self._said[seen:]

    async def close(self) -> None:
        """Nothing of it is left on the node."""
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        if self._nursery is not None:
            asyncio.get_running_loop().remove_reader(self._nursery.channel)
            self._nursery.end()
            self._nursery = None
        self._stack.close()

    async def _keep_house(self, instance: str) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_INTERVAL_S)
            await asyncio.to_thread(self._logs.keep_small, (instance, self._nursery_log))

    def _start(self, asked: LoadEngine, node: str, environment: dict[str, str]) -> tuple[NurseryProcess, LoadEngine]:
        run_dir = self._stack.enter_context(private_run_dir())
        host = LOOPBACK if asked.book.host == LOOPBACK else ray.util.get_node_ip_address()
        self._logs = LogFolder(asked.cluster, run_dir, alone=False)
        model = asked.model
        if asked.tiny_model:
            from llumnix import tiny_model

            model = str(tiny_model.ensure())
        here = msgspec.structs.replace(
            asked,
            node=node,
            model=model,
            book=asked.book.on_machine(host, run_dir),
            log_dir=None if self._logs.path is None else str(self._logs.path),
            alone=True,
        )
        return NurseryProcess(environment, self._logs.file(self._nursery_log), patience_s=_NURSERY_ENDS_S), here

    def _hear(self) -> None:
        assert self._nursery is not None
        message = self._nursery.receive()
        if message is None:
            asyncio.get_running_loop().remove_reader(self._nursery.channel)
            nursery, self._nursery = self._nursery, None
            why = self._logs.end_of(self._nursery_log, nursery.end())
            self._say(Failed(why=f"the parent of the engine's processes ended ({why})"))
        elif isinstance(message, Exited):
            self._say(Exited(child=message.child, how=self._logs.end_of(message.child, message.how)))
        else:
            self._say(message)

    def _say(self, message: FromNursery) -> None:
        self._said.append(encode(message))
        self._changed.set()


def node_name() -> str:
    """The node's name if it was given one, else its host's name (in Kubernetes: the pod's)."""
    me = ray.get_runtime_context().get_node_id()
    record = next(node for node in ray.nodes() if node["NodeID"] == me)
    given: str = record["NodeName"]
    return socket.gethostname() if given == record["NodeManagerAddress"] else given
