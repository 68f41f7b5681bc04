"""Two front ends and their instances are one server: whoever changes its state, whoever joins, whoever fails."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import msgspec

from llumnix.control.server_state import Adapter, Op, ServerState, after, with_adapter_id_taken, with_adapters
from llumnix.engine.vllm.front_end import shared_state as module
from llumnix.engine.vllm.front_end.members import Member, Members
from llumnix.engine.vllm.front_end.shared_state import SharedState
from llumnix.engine.vllm.front_end.state_file import StateFile
from llumnix.engine.vllm.instance.following import Follower
from llumnix.engine.vllm.lora import request_for
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId
from llumnix.wire.base import InstanceInfo
from llumnix.wire.news import Report

PAUSE, RESUME = Op("pause_scheduler", ("keep", True)), Op("resume_scheduler")


class Core:
    """As much of an engine core as the state of a server has to do with."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.paused = False
        self.level = 0
        self.adapters: dict[int, str] = {}
        self.missing: set[str] = set()
        self.fails: set[str] = set()

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise RuntimeError(f"{name} is not possible now")

    def pause_scheduler(self, mode: str, clear_cache: bool) -> Future[None] | None:
        self._called("pause_scheduler")
        self.paused = True
        self.idle: Future[None] = Future()
        return self.idle if mode == "wait" else None

    def resume_scheduler(self) -> None:
        self._called("resume_scheduler")
        self.paused = False

    def sleep(self, level: int, mode: str) -> None:
        self._called("sleep")
        self.paused, self.level = True, level

    def wake_up(self, tags: list[str] | None) -> bool:
        self._called("wake_up")
        self.level = 0
        self.paused = False
        return True

    def profile(self, *_: Any) -> None:
        self._called("profile")

    def reset_prefix_cache(self, *_: Any) -> bool:
        self._called("reset_prefix_cache")
        return True

    def add_lora(self, lora: Any) -> bool:
        if lora.lora_path in self.missing:
            raise ValueError(f"No adapter found for {lora.lora_path}")
        self.calls.append(f"add_lora {lora.lora_name}")
        self.adapters[lora.lora_int_id] = lora.lora_path
        self.follower.loaded(lora.lora_int_id)
        return True

    follower: Follower


class Cluster:
    """`front_ends` of them over one file; what they say to instances and to each other takes a while."""

    def __init__(self, folder: Path, front_ends: int = 2, rng: random.Random | None = None) -> None:
        self.cores: dict[str, Core] = {}
        self.rng = rng
        self.tasks: set[asyncio.Task[None]] = set()
        self.lacks: dict[InstanceId, tuple[int, ...]] = {}
        """As front ends are told."""
        self.lines: dict[tuple[int, InstanceId], asyncio.Lock] = defaultdict(asyncio.Lock)
        self.fronts = [
            SharedState(
                StateFile(str(folder)), Members(), partial(self._call, number), self._spawn, self.lacks.__setitem__
            )
            for number in range(front_ends)
        ]
        for front in self.fronts:
            others = [other for other in self.fronts if other is not front]
            front.tell_others = lambda others=others: self._tell(others)  # type: ignore[misc]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _pause(self) -> None:
        if self.rng is not None:
            await asyncio.sleep(self.rng.random() * 0.002)

    async def _tell(self, others: list[SharedState]) -> None:
        for other in others:
            await self._pause()
            await other.follow()

    async def _call(self, front: int, member: Member, state: bytes) -> bytes:
        """Of one front end in order, as on a socket; of two as it happens."""
        async with self.lines[front, member.info.id]:
            await self._pause()
            answer = self.cores[member.info.id].follower.follow(msgspec.msgpack.decode(state, type=ServerState))
        await self._pause()
        return await asyncio.wrap_future(answer) if isinstance(answer, Future) else answer

    def start(self, name: str) -> Core:
        core = self.cores[name] = Core()
        core.follower = Follower(core)
        return core

    async def join(self, front: SharedState, name: str) -> Member:
        info = InstanceInfo(
            id=InstanceId(name), index=len(front.members.by_id), slot=0, pid=1, node="", control="", data=""
        )
        snapshot = InstanceSnapshot(id=info.id, at=1, seq=1, total_blocks=9, free_blocks=9)
        member = front.members.call(Report(info=info, snapshot=snapshot))
        await front.bring(member)
        front.members.admit(member)
        return member

    async def with_instances(self, *names: str) -> Cluster:
        for name in names:
            self.start(name)
            for front in self.fronts:
                await self.join(front, name)
        return self

    async def settle(self) -> None:
        while self.tasks:
            await asyncio.gather(*self.tasks)


@pytest.fixture
async def cluster(tmp_path: Path) -> Cluster:
    return await Cluster(tmp_path).with_instances("i0", "i1")


async def test_every_instance_does_once_what_one_front_end_is_asked_for(cluster: Cluster) -> None:
    one, other = cluster.fronts
    await one.do(Op("reset_prefix_cache", (False, False)))
    await other.do(PAUSE)
    await cluster.settle()
    assert [core.calls for core in cluster.cores.values()] == [["reset_prefix_cache", "pause_scheduler"]] * 2
    await one.do(RESUME)
    assert not any(core.paused for core in cluster.cores.values())


async def test_instance_that_starts_later_does_what_still_holds_and_nothing_else(cluster: Cluster) -> None:
    one, other = cluster.fronts
    await one.do(Op("reset_prefix_cache", (False, False)))
    await one.do(PAUSE)
    core = cluster.start("i2")
    await cluster.join(other, "i2")
    assert core.calls == ["pause_scheduler"]
    await cluster.join(one, "i2")
    assert core.calls == ["pause_scheduler"], "the second front end has nothing to add"


async def test_instance_that_only_one_front_end_knows_hears_of_what_the_other_changes(cluster: Cluster) -> None:
    one, other = cluster.fronts
    core = cluster.start("i2")
    await cluster.join(other, "i2")
    await one.do(PAUSE)
    await cluster.settle()
    assert core.paused


async def test_change_that_fails_on_one_instance_is_taken_back_on_all(cluster: Cluster) -> None:
    one, _ = cluster.fronts
    cluster.cores["i1"].fails = {"sleep"}
    with pytest.raises(RuntimeError, match="not possible"):
        await one.do(Op("sleep", (1, "abort")))
    await cluster.settle()
    assert [(core.paused, core.level) for core in cluster.cores.values()] == [(False, 0)] * 2
    assert not one.file.read().asleep


async def test_instance_that_dies_meanwhile_does_not_keep_the_others_from_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = cluster.fronts
    call = one._call

    async def dies(member: Member, state: bytes) -> bytes:
        if member.info.id == "i0":
            raise ConnectionError("the instance is gone")
        return await call(member, state)

    monkeypatch.setattr(one, "_call", dies)
    assert await one.do(Op("reset_prefix_cache", (False, False))) == [True]


async def test_waiting_for_requests_does_not_keep_anybody_from_going_on(cluster: Cluster) -> None:
    one, other = cluster.fronts
    waiting = asyncio.create_task(one.do(Op("pause_scheduler", ("wait", True))))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    async with asyncio.timeout(5):
        await other.do(RESUME)
    assert not any(core.paused for core in cluster.cores.values())
    for core in cluster.cores.values():
        core.idle.set_result(None)
    await waiting


async def test_woken_up_in_parts(cluster: Cluster) -> None:
    one, other = cluster.fronts
    await one.do(Op("sleep", (1, "abort")))
    assert await other.do(Op("wake_up", (["weights"],))) == [True, True]
    assert other.file.read().activity == ()


async def test_half_woken_up_while_no_instance_is_there_is_not_awake(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    one, other = cluster.fronts
    await one.do(Op("sleep", (1, "abort")))
    assert await other.do(Op("wake_up", (["weights"],))) == []
    assert [op.name for op in one.file.read().activity] == ["sleep", "wake_up"]
    core = cluster.start("i0")
    await cluster.join(one, "i0")
    assert core.calls == ["sleep", "wake_up"], "what it would have done with all others"


async def test_change_goes_on_although_whoever_asked_for_it_goes_away(cluster: Cluster) -> None:
    one, _ = cluster.fronts
    tell, told = one.tell_others, asyncio.Event()

    async def slowly() -> None:
        told.set()
        await asyncio.sleep(0.05)
        await tell()

    one.tell_others = slowly
    cluster.cores["i1"].fails = {"sleep"}
    asked = asyncio.create_task(one.do(Op("sleep", (1, "abort"))))
    await told.wait()
    asked.cancel()
    async with asyncio.timeout(5):
        while one.file.read().version < 2:  # noqa: ASYNC110 nothing else tells
            await asyncio.sleep(0.01)
    await asyncio.gather(*one._changes, return_exceptions=True)
    await cluster.settle()
    assert [(core.paused, core.level) for core in cluster.cores.values()] == [(False, 0)] * 2, "taken back everywhere"


async def test_change_that_others_could_not_be_told_of_is_taken_back(cluster: Cluster) -> None:
    one, _ = cluster.fronts
    tell, fails = one.tell_others, [True]

    async def once() -> None:
        if fails.pop():
            fails.append(False)
            raise OSError("no way to tell them")
        fails.append(False)
        await tell()

    one.tell_others = once
    with pytest.raises(OSError, match="no way"):
        await one.do(PAUSE)
    await cluster.settle()
    assert not one.file.read().paused
    assert [core.paused for core in cluster.cores.values()] == [False, False]
    assert not [task for task in asyncio.all_tasks() if "_push" in repr(task)], "nobody waits for these"


async def test_change_that_is_taken_back_gives_no_adapters_id_away_twice(cluster: Cluster) -> None:
    """One whose load began meanwhile and failed."""
    one, other = cluster.fronts
    call = one._call

    async def fails_later(member: Member, state: bytes) -> bytes:
        one._call = call  # what brings it back is let through
        async with other.file.changing() as write:
            write(with_adapter_id_taken(other.file.read(), 7))
        await call(member, state)
        raise RuntimeError("out of memory")

    one._call = fails_later
    with pytest.raises(RuntimeError, match="out of memory"):
        await one.do(PAUSE)
    assert (one.file.read().paused, one.file.read().last_adapter_id) == (False, 7)


async def test_adapter_that_cannot_be_loaded_keeps_no_instance_out_and_is_tried_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 0.01)
    one, _ = cluster.fronts
    south, west = Adapter(id=1, name="south", path="/south"), Adapter(id=2, name="west", path="/west")
    async with one.file.changing() as write:
        write(with_adapters(one.file.read(), (south, west)))
    core = cluster.start("i2")
    core.missing = {"/south"}
    await cluster.join(one, "i2")
    assert (cluster.lacks[InstanceId("i2")], core.adapters) == ((1,), {2: "/west"})
    assert (core.follower.has_adapter(1), core.follower.has_adapter(2)) == (False, True)
    assert not core.follower.can_serve(request_for(south)), "it must not meet it in a step"
    core.missing.clear()
    async with asyncio.timeout(5):
        while cluster.lacks[InstanceId("i2")]:  # noqa: ASYNC110 nothing else tells
            await asyncio.sleep(0.01)
    assert core.adapters == {1: "/south", 2: "/west"}


async def test_instance_that_does_not_get_there_is_told_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 0.01)
    one, _ = cluster.fronts
    await one.do(PAUSE)
    core = cluster.start("i2")
    core.fails = {"pause_scheduler"}
    joining = asyncio.create_task(cluster.join(one, "i2"))
    await asyncio.sleep(0.05)
    assert not joining.done(), "an instance that serves while all others are paused"
    core.fails.clear()
    async with asyncio.timeout(5):
        await joining
    assert core.paused


def test_profiler_that_fails_keeps_no_instance_out() -> None:
    core = Core()
    core.follower = Follower(core)
    core.fails = {"profile"}
    state = after(after(ServerState(), PAUSE), Op("profile", (True, None, None, None)))
    assert isinstance(core.follower.follow(state), bytes)
    assert core.calls == ["pause_scheduler", "profile"]


def test_older_versions_are_ignored() -> None:
    core = Core()
    core.follower = Follower(core)
    paused = after(ServerState(), PAUSE)
    resumed = after(paused, RESUME)
    for state in (ServerState(), resumed, paused, resumed):
        core.follower.follow(state)
    assert not core.paused


def test_adapter_that_was_loaded_anew_in_place_is_loaded_anew_once() -> None:
    core = Core()
    core.follower = Follower(core)
    state = with_adapters(ServerState(), (Adapter(id=1, name="south", path="/old"),))
    core.follower.follow(state)
    state = with_adapters(state, (Adapter(id=1, name="south", path="/new", generation=1),))
    for _ in range(3):
        core.follower.follow(state)
    assert core.calls == ["add_lora south"] * 2
    assert core.adapters == {1: "/new"}


def test_state_names_nothing_else_of_an_engine() -> None:
    core = Core()
    core.follower = Follower(core)
    core.follower.follow(ServerState())
    with pytest.raises(ValueError, match="shutdown"):
        core.follower.follow(after(ServerState(), Op("shutdown")))


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_at_once_all_end_where_the_file_says(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    cluster = await Cluster(tmp_path, front_ends=3, rng=rng).with_instances("i0", "i1")

    async def changes(front: SharedState) -> None:
        for _ in range(8):
            await front.do(rng.choice([PAUSE, RESUME, Op("sleep", (1, "abort")), Op("wake_up", (None,))]))
            await asyncio.sleep(rng.random() * 0.005)

    async def newcomer(number: int) -> None:
        await asyncio.sleep(rng.random() * 0.05)
        cluster.start(f"n{number}")
        for front in rng.sample(cluster.fronts, 3):
            await cluster.join(front, f"n{number}")

    async with asyncio.timeout(20):
        await asyncio.gather(*map(changes, cluster.fronts), *map(newcomer, range(4)))
        await cluster.settle()
    state = cluster.fronts[0].file.read()
    assert {core.paused for core in cluster.cores.values()} == {state.paused}, (seed, state)
    assert state.version >= 24


async def test_lock_of_a_dead_process_is_free_and_a_held_one_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = StateFile(str(tmp_path))
    async with file.changing() as write:
        write(after(file.read(), PAUSE))
        monkeypatch.setattr("llumnix.engine.vllm.front_end.state_file._LOCK_TIMEOUT_S", 0.05)
        with pytest.raises(Exception, match="has not ended yet"):
            async with StateFile(str(tmp_path)).changing():
                pass
    async with StateFile(str(tmp_path)).changing():
        assert file.read().paused
