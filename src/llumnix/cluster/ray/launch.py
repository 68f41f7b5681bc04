"""The Ray launcher: speaks like a nursery to `launcher.py`, but its instances live on the nodes of a Ray cluster.

Front ends are forked here, by a nursery on the launcher's machine. Each instance has an actor (room.py) in a
placement group of its own, with the CPUs and GPUs that it needs; the actor keeps a nursery on its node and relays what
it says. So nothing but starting and stopping knows of Ray, and no token ever passes through it.

A process of its own, beside the launcher, which stays light and imports no Ray. When this one ends, however it ends,
Ray ends the actors of its job, and the kernel on each node what they started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import traceback
from typing import Any, assert_never

import ray
from ray.exceptions import RayError

from llumnix import linux
from llumnix.cluster.children import NurseryProcess
from llumnix.cluster.environment import instance_needs
from llumnix.cluster.nursery_messages import (
    Failed,
    ForkFrontEnd,
    ForkInstance,
    FromNursery,
    LoadEngine,
    SignalChild,
    StopListening,
    receive_from_launcher,
    send,
)
from llumnix.cluster.ray.placement import Resources, why_impossible
from llumnix.cluster.ray.tenant import HEAD_SILENT, Neighbours, Tenant, ask_head, draining_nodes, nodes_with
from llumnix.cluster.run_dir import private_run_dir
from llumnix.config import ClusterConfig
from llumnix.errors import UsageError

_LONGEST_BASE = 16  # bytes; Ray's sockets are up to 72 bytes below the folder, and a path may have 107
_DRAINING_POLL_S = 1.0
_STORE_BYTES = 100 * 1024**2  # Ray's object store, in which nothing of ours is


def main(arguments: list[str]) -> int:
    """`python -m llumnix.cluster.ray.launch DESCRIPTOR PARENT`: started by the launcher only."""
    linux.die_with_parent(int(arguments[1]))
    channel = socket.socket(fileno=int(arguments[0]))
    prepare = receive_from_launcher(channel)
    if not isinstance(prepare, LoadEngine):
        return 1
    home = NurseryProcess(os.environ, log=None)  # it loads the engine while we connect
    home.send(prepare)
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(home.end)
            connect(prepare.cluster, instance_needs(prepare.cluster, prepare.workers), stack)
            if not asyncio.run(House(channel, home, prepare).run()):
                print(f"the parent of the front ends ended: {home.end()}", file=sys.stderr)
                return 1
    except UsageError as error:
        send(channel, Failed(why=str(error)))
        return 2
    except Exception as error:  # noqa: BLE001 outermost: whatever Ray raises becomes a sentence and a log
        traceback.print_exc()
        with contextlib.suppress(OSError):
            send(channel, Failed(why=f"Ray failed: {_first_line(error)}"))
        return 1
    return 0


def connect(cluster: ClusterConfig, needs: Resources, stack: contextlib.ExitStack) -> None:
    """To the Ray cluster, or to one made on the spot, until `stack` ends. Raises UsageError when that cannot work.

    Nodes of a cluster may come after us: an instance that none can hold waits for one.
    """
    address = cluster.ray_address
    options: dict[str, Any] = {} if address else _on_the_spot(cluster.instances, needs, stack)
    stack.callback(ray.shutdown)
    try:
        ray.init(
            address or "local", namespace="llumnix", log_to_driver=cluster.verbose, configure_logging=False, **options
        )
    except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"The Ray cluster at {address} cannot be used" if address else "No Ray cluster can be made here"
        raise UsageError(f"{where}: {_first_line(error.__cause__ or error)}") from error
    why = None if address else why_impossible(nodes_with({}), needs)
    if why is not None:
        raise UsageError(why)


def _on_the_spot(instances: int, needs: Resources, stack: contextlib.ExitStack) -> dict[str, Any]:
    """A cluster of this machine alone, in which all instances have room; nothing of it is left at the end."""
    folder = stack.enter_context(private_run_dir(_LONGEST_BASE))
    (folder / "ray").mkdir()
    os.environ["RAY_TMPDIR"] = str(folder)
    return {
        "num_cpus": max(int(-(-instances * needs.get("CPU", 0.0) // 1)), os.cpu_count() or 1),
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
    }


class House:
    """One nursery to the launcher: front ends at home, each instance in a room of its own on some node."""

    def __init__(self, channel: socket.socket, home: NurseryProcess, prepare: LoadEngine) -> None:
        self._channel = channel
        self._home = home
        self._prepare = prepare
        self._tenants: dict[str, Tenant] = {}
        self._neighbours = Neighbours(self._nodes)
        self._home_lives = True
        self._over = asyncio.Event()

    async def run(self) -> bool:
        """Until the launcher, or the nursery at home, is gone. False if it was the latter."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            loop.add_reader(self._channel, self._hear_launcher, group)
            loop.add_reader(self._home.channel, self._hear_home)
            watch = group.create_task(self._watch_nodes())
            await self._over.wait()
            watch.cancel()
            loop.remove_reader(self._channel)
            loop.remove_reader(self._home.channel)
            for tenant in self._tenants.values():
                tenant.evict("the server ended")
        return self._home_lives

    def _hear_launcher(self, group: asyncio.TaskGroup) -> None:
        order = receive_from_launcher(self._channel)
        match order:
            case None:
                self._over.set()
            case ForkInstance():
                tenant = Tenant(order, self._prepare, self._tell, self._neighbours)
                self._tenants[order.id] = tenant
                group.create_task(self._house(order.id, tenant))
            case SignalChild() if order.child in self._tenants:
                self._tenants[order.child].signal(order)
            case ForkFrontEnd() | SignalChild() | StopListening() | LoadEngine():
                self._home.send(order)
            case _:
                assert_never(order)

    async def _house(self, instance: str, tenant: Tenant) -> None:
        await tenant.live()
        del self._tenants[instance]

    async def _watch_nodes(self) -> None:
        """Instances on nodes that Ray drains are told of. While Ray's head does not answer nobody knows."""
        while True:
            await asyncio.sleep(_DRAINING_POLL_S)
            leaving: dict[str, float | None] = {}
            with contextlib.suppress(*HEAD_SILENT):
                leaving = await ask_head(draining_nodes)
            for tenant in self._tenants.values():
                if tenant.node_id in leaving:
                    tenant.node_drains(leaving[tenant.node_id])

    def _hear_home(self) -> None:
        news = self._home.receive()
        if news is None:
            self._home_lives = False
            self._over.set()
        else:
            self._tell(news)

    def _tell(self, news: FromNursery) -> None:
        with contextlib.suppress(OSError):  # the launcher is gone, which shows in its orders, too
            send(self._channel, news)

    def _nodes(self) -> dict[str, str]:
        return {name: tenant.node_id for name, tenant in self._tenants.items() if tenant.node_id is not None}


def _first_line(error: BaseException) -> str:
    """Of a group, that of the first of them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(".") + "."


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is closed; Ray's library would take seconds more to end its threads
