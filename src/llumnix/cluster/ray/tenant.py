"""One instance on a Ray cluster, from the wish for room to the last trace of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, assert_never

import ray
from ray._private.state import available_resources_per_node
from ray._private.state import state as global_state
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from llumnix.cluster.environment import environment_abroad, instance_needs
from llumnix.cluster.nursery_messages import (
    Cleared,
    Exited,
    Failed,
    Forked,
    ForkInstance,
    FromNursery,
    HasRoom,
    Leaving,
    LoadEngine,
    Ready,
    SignalChild,
    Waiting,
    decode_news,
    encode,
)
from llumnix.cluster.ray.placement import Node, choose_node, why_waiting
from llumnix.cluster.ray.room import NodeRoom

_PATIENCE_S = 3.0  # in which a node that has room gives it; after that we look whether we wait for one
_CLOSE_S = 6.0  # in which an actor ends what it started; a node that is gone does not answer
_KILL_S = 3.0  # in which a node confirms that an instance was killed; one that is cut off does not
_UNAVAILABLE_PAUSE_S = 0.5
_HEAD_S = 30.0  # in which Ray's head answers a question


HEAD_SILENT = (RayError, RuntimeError, ConnectionError, TimeoutError)
"""What Ray raises while its head does not answer, and what a wait for it ends with."""

AnswerT = TypeVar("AnswerT")


async def ask_head(call: Callable[..., AnswerT], *arguments: Any) -> AnswerT:
    """For every call that waits for Ray's head: all tenants share one event loop, and one of them must not stop the
    others. Raises one of `HEAD_SILENT`."""
    async with asyncio.timeout(_HEAD_S):
        return await asyncio.to_thread(call, *arguments)


@dataclass(slots=True)
class Neighbours:
    """What a tenant has to know of the others to choose its node."""

    nodes: Callable[[], Mapping[str, str]]
    """By instance."""
    one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)


class Tenant:
    """`live` once; it returns when nothing of the instance is left on the cluster."""

    def __init__(
        self,
        fork: ForkInstance,
        prepare: LoadEngine,
        tell: Callable[[FromNursery], None],
        neighbours: Neighbours,
    ) -> None:
        self.node_id: str | None = None
        """Where it is, or is meant to be."""
        self._fork = fork
        self._prepare = prepare
        self._needs = instance_needs(prepare.cluster, prepare.workers)
        self._tell = tell
        self._neighbours = neighbours
        self._node = ""
        self._room: Any = None
        self._forked = False
        self._silent = False
        self._leaving = False
        self._too_late = False
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def signal(self, order: SignalChild) -> None:
        """Passes a signal on. One that is not forked yet has nothing to finish and just goes."""
        if not self._forked:
            self.evict("it was still starting")
            return
        self._room.send.remote(encode(order))
        if order.kills:
            asyncio.get_running_loop().call_later(_KILL_S, self._give_up)

    def node_drains(self, left_s: float | None) -> None:
        """Its node goes. Told once."""
        if not self._leaving:
            self._leaving = True
            node = self._node or "its node"
            self._tell(Leaving(child=self._fork.id, why=f"{node} is being drained", left_s=left_s))

    def evict(self, why: str) -> None:
        """Ends it, whatever its instance does."""
        if not self._ended.done():
            self._ended.set_result(why)

    def _give_up(self) -> None:
        self._silent = True
        self.evict("killed; its node does not answer")

    async def live(self) -> None:
        """Tells how it ended as soon as that is known, and that it is cleared when its room is given back."""
        try:
            group = await self._ask_for_room()
        except HEAD_SILENT as error:
            self._too_late = True
            self._tell(Exited(child=self._fork.id, how=f"Ray gave it no room: {_last_line(error)}"))
            return
        life = asyncio.create_task(self._life(group))
        try:
            self._tell(Exited(child=self._fork.id, how=await self._end_of(life), remains=True))
        finally:
            life.cancel()
            await asyncio.wait({life})
            await self._leave(group)
        self._tell(Cleared(child=self._fork.id))

    async def _end_of(self, life: asyncio.Task[str]) -> str:
        await asyncio.wait({life, self._ended}, return_when=asyncio.FIRST_COMPLETED)
        try:
            return self._ended.result() if self._ended.done() else await life
        except HEAD_SILENT as error:
            return await self._what_happened(error)

    async def _ask_for_room(self) -> PlacementGroup:
        """A group of one bundle. Ray puts it on the node that we choose, or on any other once there is room."""
        async with self._neighbours.one_at_a_time:  # each counts those that chose before
            nodes = await ask_head(nodes_with, self._neighbours.nodes())
            self.node_id = choose_node(nodes, self._needs, self._prepare.cluster.placement == "spread")
        return await ask_head(self._take_room, self.node_id)

    def _take_room(self, node_id: str | None) -> PlacementGroup:
        group = placement_group([dict(self._needs)], strategy="STRICT_PACK", _soft_target_node_id=node_id)
        room = ray.remote(NodeRoom).options(
            num_cpus=self._needs.get("CPU", 0.0),
            num_gpus=self._needs.get("GPU", 0.0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group),
        )
        self._room = room.remote()
        if self._too_late:  # nobody waits for it any more
            remove_placement_group(group)
        return group

    async def _life(self, group: PlacementGroup) -> str:
        """How it ended. Raises RayError when its node is lost."""
        abroad = environment_abroad(os.environ)
        opened = asyncio.ensure_future(self._room.open.remote(encode(self._prepare), abroad, self._fork.id))
        opened_in_time, _ = await asyncio.wait({opened}, timeout=_PATIENCE_S)
        if not opened_in_time and await ask_head(_node_of, group) is None:
            nodes = await ask_head(nodes_with, self._neighbours.nodes())
            self._tell(Waiting(child=self._fork.id, why=why_waiting(nodes, self._needs)))
            await opened
            self._tell(HasRoom(child=self._fork.id))
        self._node = await opened
        self.node_id = await ask_head(_node_of, group)
        seen = 0
        while True:
            frames = await self._hear(seen)
            seen += len(frames)
            for frame in frames:
                match decode_news(frame):
                    case Ready():
                        await self._room.send.remote(encode(self._fork))
                    case Forked() as forked:
                        self._forked = True
                        self._tell(Forked(child=forked.child, pid=forked.pid, node=self._node))
                    case Exited(how=how) | Failed(why=how):
                        return how
                    case Cleared():
                        pass  # the end was told before, and with it this is over
                    case Waiting() | HasRoom() | Leaving():
                        raise AssertionError("only the launcher of all nodes waits for one, or leaves one")
                    case unknown:
                        assert_never(unknown)

    async def _hear(self, seen: int) -> list[bytes]:
        """Over and over while the way to the node is disturbed; Ray says when it gives the node up."""
        while True:
            try:
                frames: list[bytes] = await self._room.receive.remote(seen)
                return frames
            except ActorUnavailableError:
                await asyncio.sleep(_UNAVAILABLE_PAUSE_S)

    async def _what_happened(self, error: Exception) -> str:
        with contextlib.suppress(*HEAD_SILENT):
            alive = {node["NodeID"] for node in await ask_head(ray.nodes) if node["Alive"]}
            if self.node_id is not None and self.node_id not in alive:
                return f"its node {self._node} was lost"
        last = _last_line(error)
        return last.removeprefix("llumnix.errors.UsageError: ") if isinstance(error, RayTaskError) else last

    async def _leave(self, group: PlacementGroup) -> None:
        """If Ray's head does not answer, what is left there goes with our job."""
        with contextlib.suppress(*HEAD_SILENT):
            if not self._silent and await ask_head(_node_of, group) is not None:
                async with asyncio.timeout(_CLOSE_S):
                    await self._room.close.remote()
        for release, what in ((ray.kill, self._room), (remove_placement_group, group)):
            with contextlib.suppress(*HEAD_SILENT):
                await ask_head(release, what)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1].rstrip(".")


def _node_of(group: PlacementGroup) -> str | None:
    """The id of the node that gave the room; None while nobody has."""
    table = placement_group_table(group)
    if table.get("state") != "CREATED":
        return None
    node: str = table["bundles_to_node_id"][0]
    return node


def draining_nodes() -> dict[str, float | None]:
    """Nodes that Ray was told to give back (`ray drain-node`, its autoscaler, a spot machine's notice), and in how many
    seconds they go, where that is known. Relies on `GlobalState.get_draining_nodes`, which Ray's own libraries use: hex
    ids, and Unix times in ms or 0."""
    deadlines_ms: dict[str, int] = global_state.get_draining_nodes()
    now_ms = time.time() * 1e3
    return {node: (until_ms - now_ms) / 1e3 if until_ms else None for node, until_ms in deadlines_ms.items()}


def nodes_with(instances: Mapping[str, str]) -> list[Node]:
    """The living nodes that stay; `instances` maps instances of ours to nodes."""
    free = available_resources_per_node()
    leaving = draining_nodes()
    here = Counter(instances.values())
    return [
        Node(record["NodeID"], record["Resources"], free.get(record["NodeID"], {}), here[record["NodeID"]])
        for record in ray.nodes()
        if record["Alive"] and record["NodeID"] not in leaving
    ]
