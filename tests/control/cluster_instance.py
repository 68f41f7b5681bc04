"""An instance of the joined model: the llumlet and tiny engine of `migration_pair`, which reports, drains and hangs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from migration_pair import Instance, LastWord, TurnedAway
from tiny_engine import BLOCK_TOKENS, Spec

from llumnix.control import commands as do
from llumnix.control import events as ev
from llumnix.control.homes import Homes
from llumnix.control.orders import MoveOrder
from llumnix.control.scheduler_events import SetDraining
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, InstanceState, RequestId, Role

if TYPE_CHECKING:
    from cluster_world import Cluster

RELIEF_STEPS = 4


@dataclass(frozen=True)
class Hello:
    """A front end's first call; in its inbox at the instance, behind all that an earlier one of its index sent."""

    front_end: int
    incarnation: int


@dataclass(frozen=True)
class Introduction:
    """The answer, in the instance's token stream."""

    incarnation: int
    snapshot: InstanceSnapshot


@dataclass(frozen=True)
class NotTaken:
    """In a token stream: the engine could not take up a request that was to go on here."""

    request: RequestId


def front_end_of(request: RequestId) -> tuple[int, int]:
    """Index and incarnation, which the names of requests begin with: `f1.2-r7~1`."""
    index, incarnation = request.partition("-")[0][1:].split(".")
    return int(index), int(incarnation)


class TokenStreams:
    """One to each front end."""

    def __init__(self, front_ends: int) -> None:
        self.to = [deque[Any]() for _ in range(front_ends)]

    def append(self, word: Any) -> None:
        request = word[0] if isinstance(word, tuple) else word.request
        self.to[front_end_of(request)[0]].append(word)


class ClusterInstance(Instance):
    world: Cluster  # type: ignore[assignment]

    def __init__(self, world: Cluster, id: InstanceId, total_blocks: int, index: int) -> None:
        super().__init__(world, id, total_blocks)  # type: ignore[arg-type]
        self.index = index
        self.streams = TokenStreams(world.size)
        self.stream = self.streams  # type: ignore[assignment]
        self.inbox: deque[Any] = deque()
        self.seen = [0] * world.size
        self.seq = 0
        self.state = InstanceState.RUNNING
        self.role = Role.MIXED
        self.homes = Homes()
        self.keep = self.asked_to_end = self.hangs = False
        self.hung_s = 0.0
        self.last: InstanceSnapshot | None = None
        self.ended = self.moved_out = 0
        self.unread = 0
        """Mail that came while it hung."""

    @property
    def has_work(self) -> bool:
        return bool(self.unread or self.inbox) or (self.last is not None and self.last.running + self.last.waiting > 0)

    # talk

    def send_to_front_end(self, command: do.SendToFrontEnd) -> None:
        self.world.post(("front end", front_end_of(command.message.request)[0]), command.message)

    def answer_move(self, command: do.AnswerMove) -> None:
        super().answer_move(command)
        self.moved_out += command.outcome.ok
        if command.outcome.order.reason != "by hand" and not command.outcome.order.is_onward:
            self.world.post("scheduler", command.outcome)

    def ordered(self, order: MoveOrder) -> None:
        if order.is_onward:
            self._begun(self.homes.told(order))
            return
        candidates = tuple(sequence.snapshot() for sequence in self.engine.sequences.values())
        self.handle(ev.MoveOrdered(self.world.now, order, candidates))

    def _begun(self, request: RequestId) -> None:
        sequence = self.engine.sequences.get(request)
        if request in self.homes and sequence is not None and sequence.state == "running":
            event = self.homes.begins(self.world.now, sequence.snapshot(), self.role)
            if event is not None:
                self.handle(event)

    def step(self) -> None:
        super().step()
        for request in list(self.engine.sequences):
            self._begun(request)

    def set_draining(self, command: SetDraining) -> None:
        if not self.asked_to_end:
            self._drain(command.draining, command.keep)

    def asked_by_its_process(self) -> None:
        """SIGTERM: it drains, and there is no way back."""
        self._drain(True, False)
        self.asked_to_end = True

    def _drain(self, draining: bool, keep: bool) -> None:
        self.state = InstanceState.DRAINING if draining else InstanceState.RUNNING
        self.keep = keep
        self.handle(ev.Draining(self.world.now) if draining else ev.Accepting(self.world.now))

    def snapshot(self) -> InstanceSnapshot:
        """A report; of an engine that hangs a heartbeat, which repeats the last one."""
        if self.hangs and self.last is not None:
            standing_s = self.world.now - self.hung_s if self.has_work else 0.0
            return msgspec.structs.replace(self.last, unread=self.unread + len(self.inbox), standing_s=standing_s)
        self.last = self._report()
        return self.last

    def hang(self) -> None:
        """In the middle of a step: what it has taken up is in its last report."""
        self.last = self._report()
        self.hangs, self.hung_s = True, self.world.now

    def _report(self) -> InstanceSnapshot:
        self.seq += 1
        sequences = self.engine.sequences.values()
        running = [each for each in sequences if each.state in ("running", "detaching")]
        waiting = [each for each in sequences if each.state == "waiting"]
        free = self.engine.free_blocks
        settled = [each for each in running if not self.llumlet.is_moving(each.spec.id)]
        leaving = settled if self.role is Role.PREFILL else []
        growth = sum(-(-(each.tokens + RELIEF_STEPS) // BLOCK_TOKENS) - len(each.blocks) for each in running)
        return InstanceSnapshot(
            id=self.id,
            at=self.world.now,
            seq=self.seq,
            state=self.state,
            total_blocks=len(self.engine.holders),
            free_blocks=free,
            block_tokens=BLOCK_TOKENS,
            max_running=1000,
            running=len(running),
            waiting=len(waiting),
            head_of_line_blocks=waiting[0].needed_blocks if waiting else 0,
            queued_blocks=sum(each.needed_blocks for each in waiting),
            role=self.role,
            to_decode=len(leaving),
            to_decode_blocks=sum(each.needed_blocks for each in leaving),
            incoming=len(self.reservations),
            outgoing=len(self.llumlet.attempts.sources),
            ended=self.ended,
            migrations_out=self.moved_out,
            short_blocks=max(0, growth - free),
            smallest_running_blocks=min((len(each.blocks) for each in running), default=0),
            dispatches_seen=tuple(self.seen),
            drain_keep=self.keep,
            asked_to_end=self.asked_to_end,
        )

    # running

    def end(self, request: RequestId, why: str) -> None:
        self.ended += 1
        super().end(request, why)

    def read_inbox(self) -> None:
        match self.inbox.popleft():
            case Spec() as spec:
                index, _ = front_end_of(spec.id)
                self.seen[index] += 1
                if "~" in spec.id and self._fails():
                    self.streams.append(NotTaken(spec.id))
                else:
                    self.engine.add(spec)
            case Hello(front_end, incarnation):
                self.streams.to[front_end].append(Introduction(incarnation, self.snapshot()))
            case request:
                if request in self.engine.sequences:
                    self.end(request, "aborted")

    def orphaned(self, front_end: int, incarnation: int) -> None:
        """A front end is gone: what it, or an earlier one of its index, asked for is for nobody."""
        for request in list(self.engine.sequences):
            index, of = front_end_of(request)
            if request in self.engine.sequences and index == front_end and of <= incarnation:
                self.end(request, "aborted")

    def last_words(self) -> None:
        """It ends as it was told to: says what it gives up, and then nothing more."""
        for request in self.engine.sequences:
            self.streams.append(TurnedAway(request))
        for item in self.inbox:
            if isinstance(item, Spec):
                self.streams.append(TurnedAway(item.id))
        for stream in self.streams.to:
            stream.append(LastWord())
