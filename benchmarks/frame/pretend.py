"""A cluster that is none: requests come, grow, wait, move and end as a seed says, one step after the other."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from time import time

from llumnix.engine.vllm.front_end.members import Members
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.virtual_usage import migration_freeness
from llumnix.report.records import MigrationRecord
from llumnix.types import InstanceId, InstanceState
from llumnix.wire.base import InstanceInfo
from llumnix.wire.news import InstanceGone, InstanceStarting, Report

BLOCKS = 512
BLOCK_TOKENS = 16
STARTS_IN = 30
"""Steps from an order until it takes requests."""
_ENDINGS = ("stayed: the target has no room", "stayed: the request ended meanwhile")


@dataclass
class PretendRequest:
    id: str
    prompt: int
    output: int
    limit: int
    moves: int = 0
    why_pinned: str = ""
    high: bool = False

    @property
    def blocks(self) -> int:
        return -(-(self.prompt + self.output) // BLOCK_TOKENS)


@dataclass
class _Instance:
    info: InstanceInfo
    running: list[PretendRequest] = field(default_factory=list)
    waiting: list[PretendRequest] = field(default_factory=list)
    state: InstanceState = InstanceState.RUNNING
    keep: bool = False
    seq: int = 0
    ended: int = 0
    moved_in: int = 0
    moved_out: int = 0

    @property
    def free(self) -> int:
        return BLOCKS - sum(request.blocks for request in self.running)

    def snapshot(self) -> InstanceSnapshot:
        self.seq += 1
        return InstanceSnapshot(
            id=self.info.id,
            at=float(self.seq),
            seq=self.seq,
            state=self.state,
            total_blocks=BLOCKS,
            free_blocks=self.free,
            running=len(self.running),
            waiting=len(self.waiting),
            queued_blocks=sum(request.blocks for request in self.waiting),
            head_of_line_blocks=self.waiting[0].blocks if self.waiting else 0,
            ended=self.ended,
            migrations_in=self.moved_in,
            migrations_out=self.moved_out,
            drain_keep=self.keep,
        )


class PretendCluster:
    """Members as a front end knows them (`members`), who comes and goes (`starting`, `gone`), and moves (`records`)."""

    def __init__(self, instances: int, seed: int = 1) -> None:
        self.members = Members()
        self.starting: dict[InstanceId, InstanceStarting] = {}
        self.gone: deque[tuple[InstanceGone, InstanceState]] = deque(maxlen=100)
        self.records: deque[MigrationRecord] = deque(maxlen=100_000)
        self.all: dict[InstanceId, _Instance] = {}
        self.steps = 0
        self._rng = random.Random(seed)
        self._pressure = [0.3 + self._rng.random() for _ in range(instances)]
        self._serves_at: dict[InstanceId, int] = {}
        self._numbers = 0
        for _ in range(instances):
            self._serve(self._next_id())

    def step(self, arrivals_per_instance: float = 0.17) -> None:
        """A tenth of a second, more or less."""
        self.steps += 1
        for name in [name for name, at in self._serves_at.items() if self.steps >= at]:
            del self._serves_at[name], self.starting[name]
            self._serve(name)
        taking = [one for one in self.all.values() if one.state is InstanceState.RUNNING]
        for number, one in enumerate(taking):
            if self._rng.random() < arrivals_per_instance * self._pressure[number % len(self._pressure)]:
                one.waiting.append(self._arrival())
        for one in list(self.all.values()):
            self._grow(one)
        self._balance(taking)
        for one in self.all.values():
            self.members.known[one.info.id].snapshot = one.snapshot()

    def _grow(self, one: _Instance) -> None:
        for request in list(one.running):
            request.output += self._rng.randint(2, 6)
            if request.output >= request.limit:
                one.running.remove(request)
                one.ended += 1
        while one.waiting and one.free > one.waiting[0].blocks + 8:
            one.running.append(one.waiting.pop(0))
        while one.free < 0:
            one.waiting.insert(0, one.running.pop())
        if one.state is InstanceState.DRAINING:
            self._empty(one)

    def _balance(self, taking: list[_Instance]) -> None:
        ranked = sorted(taking, key=lambda one: migration_freeness(one.snapshot(), None))
        for giver, taker in zip(ranked[: len(ranked) // 4], reversed(ranked), strict=False):
            low, high = migration_freeness(giver.snapshot(), None), migration_freeness(taker.snapshot(), None)
            if giver is not taker and low < 3.0 < high and giver.running:
                self.move(giver, taker, giver.running[-1], f"freeness {low:.1f} against {high:.1f}")

    def move(self, giver: _Instance, taker: _Instance, request: PretendRequest, reason: str) -> MigrationRecord:
        moved = self._rng.random() > 0.12
        if moved:
            giver.running.remove(request)
            taker.running.append(request)
            request.moves += 1
            giver.moved_out += 1
            taker.moved_in += 1
        record = MigrationRecord(
            at_s=time(),
            request_id=request.id,
            source=giver.info.id,
            target=taker.info.id,
            reason=reason,
            outcome="moved" if moved else self._rng.choice(_ENDINGS),
            stages=2 if moved else 1,
            bytes=request.blocks * 32768,
            copy_ms=self._rng.uniform(8, 40),
            handover_ms=self._rng.uniform(2, 9) if moved else None,
            downtime_ms=self._rng.uniform(3, 18) if moved else None,
            move_id=f"scheduler-4711-{self.steps}",
        )
        self.records.append(record)
        return record

    def _empty(self, one: _Instance) -> None:
        taking = [each for each in self.all.values() if each.state is InstanceState.RUNNING]
        if one.running and taking:
            target = max(taking, key=lambda each: each.free)
            self.move(one, target, one.running[0], f"{one.info.id} drains, {len(one.running)} left")
        elif one.waiting and taking:
            taking[0].waiting.append(one.waiting.pop())
        elif not one.keep:
            self._stop(one)

    def _stop(self, one: _Instance) -> None:
        gone = InstanceGone(instance=one.info.id, index=one.info.index, why="drained: asked for", expected=True)
        self.gone.append((gone, InstanceState.STOPPED))
        self.members.remove(one.info.id)
        del self.all[one.info.id]

    def start(self, count: int) -> None:
        for _ in range(count):
            name = self._next_id()
            self._serves_at[name] = self.steps + STARTS_IN
            self.starting[name] = InstanceStarting(instance=name, index=int(name[1:]), pid=9, node="node-a")

    def _next_id(self) -> InstanceId:
        self._numbers += 1
        return InstanceId(f"i{self._numbers - 1}")

    def _serve(self, name: InstanceId) -> None:
        index = int(name[1:])
        info = InstanceInfo(id=name, index=index, slot=index, pid=2100 + index, node="node-a", control="", data="")
        one = self.all[name] = _Instance(info)
        member = self.members.call(Report(info=info, snapshot=one.snapshot()))
        self.members.admit(member)

    def _arrival(self) -> PretendRequest:
        prompt, limit = int(self._rng.expovariate(1 / 220)) + 8, int(self._rng.expovariate(1 / 260)) + 16
        request = PretendRequest(
            f"cmpl-{self._rng.getrandbits(96):024x}", prompt, 0, limit, high=self._rng.random() < 0.1
        )
        if self._rng.random() < 0.06:
            request.why_pinned = "it has an image, and its engine keeps what it made of it"
        return request
