"""Tenants of a Ray cluster whose head does not answer; Ray itself is played by stand-ins."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

from frame.server import WAIT_S, wait_for
from ray.exceptions import ActorDiedError

from llumnix.cluster.nursery_messages import (
    Cleared,
    Exited,
    ForkInstance,
    FromNursery,
    HasRoom,
    LoadEngine,
    Waiting,
    channel,
    encode,
    receive_from_nursery,
)
from llumnix.cluster.ray import room as ray_room
from llumnix.cluster.ray import tenant as ray_tenant
from llumnix.cluster.ray.launch import House, _first_line
from llumnix.cluster.ray.placement import Node
from llumnix.cluster.ray.room import NodeRoom
from llumnix.cluster.ray.tenant import Neighbours, Tenant
from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig
from llumnix.types import InstanceId
from llumnix.wire.addresses import on_one_machine

pytestmark = pytest.mark.io


def silent(*_: Any, **__: Any) -> Any:
    raise RuntimeError("Failed to connect to GCS")


class Method:
    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call


async def dies(*_: Any) -> str:
    raise ActorDiedError


class Ray:
    """A cluster with one node, on which the actor of every instance dies at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.removed: list[str] = []
        room = SimpleNamespace(open=Method(dies), close=Method(dies))
        made: Any = SimpleNamespace(remote=lambda: room, options=lambda **_: made)
        nodes = [{"NodeID": "n", "Alive": True}]
        stand_in = SimpleNamespace(remote=lambda _: made, nodes=lambda: nodes, kill=lambda _: None)
        self._monkeypatch, self._stand_in = monkeypatch, stand_in
        monkeypatch.setattr(ray_tenant, "ray", stand_in)
        for name, call in (
            ("PlacementGroupSchedulingStrategy", lambda _: None),
            ("nodes_with", lambda _: [Node("n", {"CPU": 4.0}, {"CPU": 4.0}, 0)]),
            ("placement_group", lambda *_, **__: "group"),
            ("placement_group_table", lambda _: {"state": "CREATED", "bundles_to_node_id": {0: "n"}}),
            ("remove_placement_group", self.removed.append),
        ):
            monkeypatch.setattr(ray_tenant, name, call)

    def head_is_gone(self, how: Callable[..., Any]) -> None:
        self._monkeypatch.setattr(self._stand_in, "nodes", how)
        self._monkeypatch.setattr(self._stand_in, "kill", how)
        self._monkeypatch.setattr(ray_tenant, "placement_group_table", how)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    return Ray(monkeypatch)


def prepared(folder: Path) -> LoadEngine:
    return LoadEngine(
        engine="none",
        engine_flags=(),
        model="",
        tiny_model=False,
        node="here",
        book=on_one_machine(folder),
        log_dir=None,
        secret=b"",
        policy=PolicyConfig(),
        migration=MigrationConfig(),
        cluster=ClusterConfig(launcher="ray"),
        workers=1,
    )


def tenant(folder: Path) -> tuple[Tenant, list[FromNursery]]:
    """And what it says."""
    said: list[FromNursery] = []
    fork = ForkInstance(id=InstanceId("i0"), index=0, slot=0)
    return Tenant(fork, prepared(folder), said.append, Neighbours(dict)), said


async def end_of(folder: Path) -> str:
    """Of an instance that lives there: what is said of it."""
    one, said = tenant(folder)
    await one.live()
    (exited,) = (news for news in said if isinstance(news, Exited))
    assert (Cleared(child="i0") == said[-1]) == exited.remains
    return exited.how


async def test_instance_that_ends_while_the_head_is_gone_ends_with_its_reason(ray: Ray, tmp_path: Path) -> None:
    ray.head_is_gone(silent)
    assert "actor died" in (await end_of(tmp_path)).lower()
    assert ray.removed == ["group"]


async def test_end_of_an_instance_stops_no_other_while_the_head_thinks(ray: Ray, tmp_path: Path) -> None:
    """All tenants share the thread of one event loop, and none waits for the head there."""
    waiting: list[threading.Thread] = []

    def thinks(*arguments: Any, **more: Any) -> Any:
        waiting.append(threading.current_thread())
        return silent(*arguments, **more)

    ray.head_is_gone(thinks)
    assert "actor died" in (await end_of(tmp_path)).lower()
    assert waiting
    assert threading.current_thread() not in waiting


async def test_end_of_an_instance_is_told_before_its_room_is_given_back(
    ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Giving it back asks the head, which may be slow; the requests that the instance had are to go on before."""
    one, said = tenant(tmp_path)
    told_before: list[list[FromNursery]] = []
    monkeypatch.setattr(ray_tenant, "remove_placement_group", lambda _: told_before.append(said.copy()))
    await one.live()
    ((exited,),) = told_before
    assert isinstance(exited, Exited)
    assert exited.remains
    assert said == [exited, Cleared(child="i0")]


async def test_no_room_while_the_head_is_gone_is_told(
    ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_tenant, "nodes_with", silent)
    assert await end_of(tmp_path) == "Ray gave it no room: Failed to connect to GCS"


async def test_room_that_comes_too_late_is_given_back(
    ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = threading.Event()

    def late(*_: Any, **__: Any) -> str:
        assert given_up.wait(WAIT_S)
        return "late group"

    monkeypatch.setattr(ray_tenant, "placement_group", late)
    monkeypatch.setattr(ray_tenant, "_HEAD_S", 0.5)
    assert "Ray gave it no room" in await end_of(tmp_path)
    given_up.set()
    await asyncio.to_thread(wait_for, lambda: ray.removed, "the room given back")
    assert ray.removed == ["late group"]


async def test_end_of_the_front_ends_parent_is_no_end_as_wished(ray: Ray, tmp_path: Path) -> None:
    launcher, ours = channel()
    nursery, home = channel()
    with launcher, ours, home:
        nursery.close()
        speaker: Any = SimpleNamespace(channel=home, receive=lambda: receive_from_nursery(home))
        assert await House(ours, speaker, prepared(tmp_path)).run() is False
    launcher, ours = channel()
    nursery, home = channel()
    with ours, nursery, home:
        launcher.close()
        speaker = SimpleNamespace(channel=home, receive=lambda: receive_from_nursery(home))
        assert await House(ours, speaker, prepared(tmp_path)).run() is True


@pytest.mark.usefixtures("ray")
async def test_instance_that_waited_tells_when_it_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time to start begins then, and not when its engine is loaded, which may never be."""
    monkeypatch.setattr(ray_tenant, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(ray_tenant, "placement_group_table", lambda _: {"state": "PENDING"})
    said: asyncio.Queue[FromNursery] = asyncio.Queue()
    room = asyncio.Event()

    async def open_when_there_is_room(*_: Any) -> str:
        await room.wait()
        return "there"

    fork = ForkInstance(id=InstanceId("i0"), index=0, slot=0)
    one: Any = Tenant(fork, prepared(tmp_path), said.put_nowait, Neighbours(dict))
    one._room = SimpleNamespace(open=Method(open_when_there_is_room), receive=Method(lambda _: asyncio.Event().wait()))
    life = asyncio.create_task(one._life("group"))
    assert isinstance(await asyncio.wait_for(said.get(), 10), Waiting)
    room.set()
    assert await asyncio.wait_for(said.get(), 10) == HasRoom(child="i0")
    life.cancel()
    await asyncio.wait({life})


async def test_logs_on_a_node_are_kept_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: asyncio.Queue[Any] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    ours, theirs = channel()

    def start(room: Any, asked: LoadEngine, *_: Any) -> tuple[Any, LoadEngine]:
        room._logs = SimpleNamespace(keep_small=lambda names: loop.call_soon_threadsafe(kept.put_nowait, [*names]))
        return SimpleNamespace(channel=ours, send=lambda _: None, end=ours.close), asked

    monkeypatch.setattr(ray_room, "node_name", lambda: "there")
    monkeypatch.setattr(ray_room, "HOUSEKEEPING_INTERVAL_S", 0.01)
    monkeypatch.setattr(NodeRoom, "_start", start)
    room = NodeRoom()
    await room.open(encode(prepared(tmp_path)), {}, "i0")
    for _ in range(2):
        assert await asyncio.wait_for(kept.get(), 10) == ["i0", "nursery-i0"]
    await room.close()
    theirs.close()
    await asyncio.sleep(0.05)
    assert len(asyncio.all_tasks()) == 1


def test_failure_within_tasks_is_told_as_what_it_is() -> None:
    inner = ExceptionGroup("unhandled errors in a TaskGroup", [ConnectionError("the head is gone\nand more")])
    assert _first_line(ExceptionGroup("unhandled errors in a TaskGroup", [inner])) == "the head is gone."
