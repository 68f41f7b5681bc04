"""The global scheduler under any sequence of events: limits hold, every move in flight ends, nothing grows."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llumnix.config import PolicyConfig
from llumnix.control.drain import DrainLimits
from llumnix.control.moves import MOVE_DEADLINE_S
from llumnix.control.scheduler import GlobalScheduler
from llumnix.control.scheduler_events import (
    DeclareLost,
    DrainRequested,
    InstanceLost,
    LoadReported,
    MigrationEnded,
    MoveRequest,
    RoundAt,
    RoundDue,
    SchedulerEvent,
)
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, InstanceState
from move_outcomes import outcome

IDS = [InstanceId(name) for name in "abcdef"]
LIMIT = 2
DRAIN_MOVES = 4
TIMEOUT_S = 30.0


class SchedulerModel(RuleBasedStateMachine):
    """Keeps its own books of moves asked for, by the commands alone."""

    def __init__(self) -> None:
        super().__init__()
        config = PolicyConfig(max_migrations_per_instance=LIMIT)
        self.scheduler = GlobalScheduler(config, TIMEOUT_S, DrainLimits(moves=DRAIN_MOVES, repeat_s=TIMEOUT_S))
        self.at = 0.0
        self.wake_at: float | None = None
        self.seq = 0
        self.move_ids: set[str] = set()
        self.in_flight: dict[tuple[InstanceId, InstanceId], tuple[int, float]] = {}
        self.draining: set[InstanceId] = set()
        self.lost: set[InstanceId] = set()
        self.seen: set[InstanceId] = set()

    def tell(self, event: SchedulerEvent) -> None:
        if isinstance(event, RoundDue):
            self.in_flight = {ends: (n, at) for ends, (n, at) in self.in_flight.items() if at > self.at}
        for command in self.scheduler.handle(event):
            if isinstance(command, RoundAt):
                assert command.at > self.at
                self.wake_at = command.at
                continue
            if isinstance(command, MoveRequest):
                assert command.order.reason
            else:
                assert command.why if isinstance(command, DeclareLost) else command.reason  # type: ignore[union-attr]
            if isinstance(command, DeclareLost):
                self.forget(command.instance)
            elif isinstance(command, MoveRequest):
                assert command.source != command.order.target
                assert not {command.source, command.order.target} & self.lost
                assert command.order.target not in self.draining
                assert command.order.move_id not in self.move_ids, "each order has an id of its own"
                self.move_ids.add(command.order.move_id)
                ends = (command.source, command.order.target)
                self.in_flight[ends] = (
                    self.in_flight.get(ends, (0, 0.0))[0] + command.order.wanted.count,
                    self.at + MOVE_DEADLINE_S,
                )

    def forget(self, instance: InstanceId) -> None:
        self.lost.add(instance)
        self.in_flight = {ends: n for ends, n in self.in_flight.items() if instance not in ends}

    @rule(seconds=st.floats(0.01, 5.0))
    def pass_time(self, seconds: float) -> None:
        self.at += seconds
        if self.wake_at is not None and self.wake_at <= self.at:
            self.wake_at = None
            self.tell(RoundDue(at=self.at))

    @rule(
        id=st.sampled_from(IDS),
        running=st.integers(0, 60),
        each=st.integers(1, 30),
        preempted=st.integers(0, 2),
        outgoing=st.integers(0, 2),
        short=st.sampled_from([0, 0, 3]),
    )
    def report(self, id: InstanceId, running: int, each: int, preempted: int, outgoing: int, short: int) -> None:
        self.seq += 1
        held = min(1000, running * each)
        snapshot = InstanceSnapshot(
            id=id,
            at=self.at,
            seq=self.seq,
            state=InstanceState.DRAINING if id in self.draining else InstanceState.RUNNING,
            total_blocks=1000,
            free_blocks=1000 - held,
            running=running,
            waiting=preempted,
            preempted=preempted,
            head_of_line_blocks=each if preempted else 0,
            queued_blocks=each * preempted,
            smallest_running_blocks=held // running // 2 if running else 0,
            outgoing=outgoing,
            short_blocks=short,
        )
        self.seen.add(id)
        self.tell(LoadReported(at=self.at, snapshot=snapshot))

    @rule(pick=st.integers(0, 40), ok=st.booleans(), empty=st.booleans())
    def answer(self, pick: int, ok: bool, empty: bool) -> None:
        if not self.in_flight:
            return
        source, target = ends = sorted(self.in_flight)[pick % len(self.in_flight)]
        count, deadline = self.in_flight.pop(ends)
        if count > 1 and not empty:
            self.in_flight[ends] = (count - 1, deadline)
        why_not = None if ok and not empty else "refused"
        ended = outcome(source, target, None if empty else "r", why_not)
        self.tell(MigrationEnded(at=self.at, outcome=ended))

    @rule(ends=st.tuples(st.sampled_from(IDS), st.sampled_from(IDS)))
    def answer_nobody_waits_for(self, ends: tuple[InstanceId, InstanceId]) -> None:
        source, target = ends
        if ends not in self.in_flight:
            self.tell(MigrationEnded(at=self.at, outcome=outcome(source, target, None, "nothing to give")))

    @rule(id=st.sampled_from(IDS[:2]), keep=st.booleans())
    def drain(self, id: InstanceId, keep: bool) -> None:
        if id in self.seen - self.lost:
            self.draining.add(id)
            self.tell(DrainRequested(at=self.at, instance=id, keep=keep))

    @rule(id=st.sampled_from(IDS[2:4]))
    def lose(self, id: InstanceId) -> None:
        self.forget(id)
        self.tell(InstanceLost(at=self.at, instance=id, why="killed"))

    @invariant()
    def books_agree(self) -> None:
        assert len(self.scheduler.moves) == sum(count for count, _ in self.in_flight.values())

    @invariant()
    def limits_hold(self) -> None:
        out, coming = Counter[InstanceId](), Counter[InstanceId]()
        for (source, target), (count, _) in self.in_flight.items():
            out[source] += count
            coming[target] += count
        for source, count in out.items():
            assert count <= (DRAIN_MOVES if source in self.draining else LIMIT)
        assert all(count <= max(DRAIN_MOVES, LIMIT) for count in coming.values())

    def teardown(self) -> None:
        """Answers never come: after the deadline nothing is in flight, and after the silence nobody is known."""
        for _ in range(int(2 * (MOVE_DEADLINE_S + TIMEOUT_S)) + 2):
            self.pass_time(0.5)
        assert len(self.scheduler.moves) == 0
        assert self.scheduler.snapshot(self.at).instances == ()
        assert self.wake_at is None


TestSchedulerModel = SchedulerModel.TestCase
TestSchedulerModel.settings = settings(max_examples=40, stateful_step_count=40)
