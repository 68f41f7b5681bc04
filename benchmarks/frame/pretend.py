"""A cluster that is none: requests come, grow, wait, move and end as a seed says, one step after the other."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import time

from llumnix.control.orders import MoveCause, MoveFigures, MoveId, MoveOrder, MoveOutcome, StayCause
from llumnix.engine.vllm.front_end.members import Members
from llumnix.journal.journal import Journal
from llumnix.journal.stories import Stories
from llumnix.journal.story import Story
from llumnix.policy.dispatch import MOST_SHOWN, DispatchReason, Judged
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.virtual_usage import migration_freeness
from llumnix.report.records import MigrationRecord, migration_record
from llumnix.types import InstanceId, InstanceState, RequestId
from llumnix.wire.base import InstanceInfo
from llumnix.wire.news import InstanceGone, InstanceStarting, Report

BLOCKS = 512
BLOCK_TOKENS = 16
STARTS_IN = 30
"""Steps from an order until it takes requests."""
_ENDINGS = ((StayCause.REFUSED, "the target has no room"), (StayCause.ENDED, "the request ended meanwhile"))


@dataclass
class PretendRequest:
    id: str
    prompt: int
    limit: int
    story: Story
    output: int = 0
    preempted_s: float | None = None
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
    """Members as a front end knows them (`members`), who comes and goes (`starting`, `gone`), moves (`records`), and
    what happened to each request (`stories`)."""

    def __init__(self, instances: int, seed: int = 1) -> None:
        self.members = Members()
        self.starting: dict[InstanceId, InstanceStarting] = {}
        self.gone: deque[tuple[InstanceGone, InstanceState]] = deque(maxlen=100)
        self.records: deque[MigrationRecord] = deque(maxlen=100_000)
        self.stories = Stories(Journal("f0"))
        self.all: dict[InstanceId, _Instance] = {}
        self.steps = 0
        self.clock: Callable[[], float] = time
        """In seconds since 1970."""
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
                one.waiting.append(self._arrival(one, taking))
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
                request.story.ended(self.clock(), "length", request.output)
                self.stories.over(request.story)
        while one.waiting and one.free > one.waiting[0].blocks + 8:
            one.running.append(self._started(one.waiting.pop(0)))
        while one.free < 0:
            one.waiting.insert(0, one.running.pop())
            one.waiting[0].preempted_s = self.clock()
        if one.state is InstanceState.DRAINING:
            self._empty(one)

    def _started(self, request: PretendRequest) -> PretendRequest:
        """It has its place in a batch, maybe again, and makes tokens."""
        if request.preempted_s is not None:
            request.story.preempted(request.preempted_s)
            request.preempted_s = None
        request.story.scheduled(self.clock())
        request.story.token(self.clock())
        return request

    def _balance(self, taking: list[_Instance]) -> None:
        ranked = sorted(taking, key=lambda one: migration_freeness(one.snapshot(), None))
        for giver, taker in zip(ranked[: len(ranked) // 4], reversed(ranked), strict=False):
            low, high = migration_freeness(giver.snapshot(), None), migration_freeness(taker.snapshot(), None)
            if giver is not taker and low < 3.0 < high and giver.running:
                self.move(giver, taker, giver.running[-1], MoveCause.BALANCE, f"freeness {low:.1f} against {high:.1f}")

    def move(
        self, giver: _Instance, taker: _Instance, request: PretendRequest, cause: MoveCause, reason: str
    ) -> MigrationRecord:
        moved = self._rng.random() > 0.12
        if moved:
            runs = request in giver.running
            (giver.running if runs else giver.waiting).remove(request)
            (taker.running if runs else taker.waiting).append(request)
            request.moves += 1
            giver.moved_out += 1
            taker.moved_in += 1
        stayed, why_not = (None, None) if moved else self._rng.choice(_ENDINGS)
        move_id = MoveId(f"scheduler-4711-{self.steps}")
        outcome = MoveOutcome(
            order=MoveOrder(move_id=move_id, target=taker.info.id, cause=cause, reason=reason),
            source=giver.info.id,
            request=RequestId(request.id),
            why_not=why_not,
            stayed=stayed,
            figures=MoveFigures(
                stages=2 if moved else 1,
                bytes_copied=request.blocks * 32768,
                copy_s=self._rng.uniform(0.008, 0.04),
                handover_s=self._rng.uniform(0.002, 0.009),
            ),
        )
        downtime_s = self._rng.uniform(0.003, 0.018) if moved else None
        if moved:
            request.story.moved(self.clock(), outcome, downtime_s)
        else:
            request.story.stayed(self.clock(), outcome)
        record = migration_record(self.clock(), request.id, outcome, downtime_s)
        self.records.append(record)
        return record

    def _empty(self, one: _Instance) -> None:
        taking = [each for each in self.all.values() if each.state is InstanceState.RUNNING]
        if one.running and taking:
            target = max(taking, key=lambda each: each.free)
            reason = f"{one.info.id} drains, {len(one.running)} left"
            self.move(one, target, one.running[0], MoveCause.DRAIN, reason)
        elif one.waiting and taking:
            self.move(one, taking[0], one.waiting[-1], MoveCause.DRAIN, f"{one.info.id} drains")
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
            self.starting[name] = InstanceStarting(instance=name, pid=9, node="node-a")

    def _next_id(self) -> InstanceId:
        self._numbers += 1
        return InstanceId(f"i{self._numbers - 1}")

    def _serve(self, name: InstanceId) -> None:
        index = int(name[1:])
        info = InstanceInfo(id=name, index=index, slot=index, pid=2100 + index, node="node-a", control="", data="")
        one = self.all[name] = _Instance(info)
        member = self.members.call(Report(info=info, snapshot=one.snapshot()))
        self.members.admit(member)

    def _arrival(self, one: _Instance, taking: list[_Instance]) -> PretendRequest:
        prompt, limit = int(self._rng.expovariate(1 / 220)) + 8, int(self._rng.expovariate(1 / 260)) + 16
        name = f"cmpl-{self._rng.getrandbits(96):024x}"
        story = self.stories.began(self.clock(), name, name, prompt)
        judged = [Judged(each.info.id, migration_freeness(each.snapshot(), None)) for each in (one, *taking)]
        worse = sorted((each for each in judged[1:] if each.number < judged[0].number), key=lambda each: -each.number)
        reason = DispatchReason("freeness", (judged[0], *worse[: MOST_SHOWN - 1]), 1 + len(worse))
        story.dispatched(self.clock(), reason)
        request = PretendRequest(name, prompt, limit, story, high=self._rng.random() < 0.1)
        if self._rng.random() < 0.06:
            request.why_pinned = "it has an image, and its engine keeps what it made of it"
        return request
