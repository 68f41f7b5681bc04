"""A simulated run: the cluster around the objects that serve live, and their network.

`simulate(requests, setup)` runs a workload to its end in virtual time. The minds of the front end, of the scheduler and
of the instances are the live ones; around each is what its live process adds (`front_end.py`, `scheduler.py`,
`launcher.py`, `instance.py`), and here is what lies between them: messages with their travel time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp
from random import Random

from llumnix.control import scheduler_events as sched
from llumnix.control.llumlet import Llumlet
from llumnix.control.messages import AnyMessage, AnyNotice, Doubt
from llumnix.control.orders import MoveCause, MoveId, MoveOrder, MoveOutcome
from llumnix.control.prefix_table import PrefixNews
from llumnix.control.replay import LlumletBegin
from llumnix.errors import UsageError
from llumnix.journal.entries import JournalEntry
from llumnix.journal.journal import Journal
from llumnix.journal.of_cluster import ClusterNotes
from llumnix.policy.catalogue import find_policy
from llumnix.policy.snapshot import InstanceSnapshot, StepCost
from llumnix.recording import recorder
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.front_end import SimFrontEnd
from llumnix.sim.instance import SimInstance
from llumnix.sim.kernel import Kernel
from llumnix.sim.launcher import SimLauncher
from llumnix.sim.network import CopyEnded, Network
from llumnix.sim.observer import RunObserver
from llumnix.sim.outcome import Outcome
from llumnix.sim.profiles.cost_model import step_cost
from llumnix.sim.reception import take_seat
from llumnix.sim.scheduler import SimScheduler
from llumnix.sim.setup import PlannedMove, RunSetup, instance_name
from llumnix.types import Epoch, InstanceId, RequestId
from llumnix.workload.workload import Workload

HELD_TOLD_S = 1.0
"""Between two words of the front end about what it holds, as live."""

OnProgress = Callable[[int, float], None]
"""Called now and then with the number of finished requests and the virtual time."""


def sim_requests(workload: Workload, unit_tokens: int = 0) -> list[SimRequest]:
    """The requests of a workload, fresh for one run. `unit_tokens`: of the prefix cache (`RunSetup.unit_tokens`), whose
    units may hold several of the workload's content ids each."""
    ids = unit_tokens // workload.hashed_tokens if unit_tokens else 1
    return [
        SimRequest(
            index,
            one.arrival_s,
            one.prompt_tokens,
            one.output_tokens,
            one.priority,
            one.block_hashes if ids == 1 else _together(one.block_hashes, ids),
            one.id,
            one.tenant,
            one.cls,
        )
        for index, one in enumerate(workload.requests)
    ]


def _together(hashes: tuple[int, ...], count: int) -> tuple[int, ...]:
    """One id for each `count`; the rest fills no unit, and is shared with nobody."""
    return tuple(hash(hashes[end - count : end]) for end in range(count, len(hashes) + 1, count))


def simulate(
    requests: Sequence[SimRequest],
    setup: RunSetup,
    progress: OnProgress | None = None,
    listener: Callable[[JournalEntry], None] | None = None,
) -> Outcome:
    """Runs all requests to their end. `listener` is told what happens, as the journals of a server would have it.
    Raises UsageError for one that no instance could ever hold."""
    most = setup.profile.max_sequence_tokens
    for request in requests:
        if request.prompt_tokens + request.output_tokens > most:
            raise UsageError(
                f"Request {request.id} has {request.prompt_tokens} + {request.output_tokens} tokens, but an instance "
                f"of {setup.profile.name} holds at most {most}; cut the workload with `total={most}`."
            )
    return _Run(requests, setup, progress, listener).run()


class _Run:
    """One run: the cluster as the instances see it (`World`), and its parts."""

    def __init__(
        self,
        requests: Sequence[SimRequest],
        setup: RunSetup,
        progress: OnProgress | None,
        listener: Callable[[JournalEntry], None] | None,
    ) -> None:
        self.kernel = Kernel()
        self.profile = setup.profile
        self.cluster = setup.cluster
        self.paper_body = setup.paper_body
        self.looks_each_step = setup.looks_each_step
        self.reads_between_steps = setup.reads_between_steps
        self._setup = setup
        self._progress = progress
        policy = find_policy(setup.policy.policy)
        self.tpot_target_s = setup.policy.roles.tpot_target_s
        self.relief_steps = setup.policy.relief_steps if policy.relief else 0
        self._network = network = Network(self.kernel, setup.profile)
        self._requests = sorted(requests, key=lambda request: (request.arrival_s, request.index))
        if setup.classes is not None:
            for request in self._requests:
                take_seat(request, setup.classes)
        if policy.priorities and setup.profile.scheduler.priorities:
            for request in self._requests:
                request.order = (request.priority, request.arrival_s, request.index)
        self._instances: dict[InstanceId, SimInstance] = {}
        self._front_end = SimFrontEnd(self._requests, setup, self.kernel, network, self._instances, self._one_over)
        self._launcher = SimLauncher(setup, self, network, self._instances, self._front_end, self._schedule)
        self._scheduler = SimScheduler(setup, self.kernel, network, self._instances, self._front_end, self._launcher)
        if listener is not None:
            self._front_end.journal = Journal("f0", listener=listener)
            self._scheduler.notes = ClusterNotes(Journal("s", listener=listener))
        self._unfinished = len(self._requests)
        self._outcome = Outcome(requests=self._requests)
        self._observer = RunObserver(self._outcome, policy.priority_target_tokens(setup.policy))

    def run(self) -> Outcome:
        self._launcher.start_all()
        if self._requests:
            self._front_end.start()
            self._launcher.plan_faults()
            for move in self._setup.moves:
                self.kernel.at(move.at_s, self._move_by_hand, move)
            for drain in self._setup.drains:
                order = sched.DrainRequested(at=drain.at_s, instance=instance_name(drain.instance))
                self.kernel.at(drain.at_s, self._schedule, order)
            if self._setup.scaling is not None and self.paper_body:
                self._scheduler.scale_as_the_paper(self._setup.scaling)
            if self._setup.scaling is not None and self._setup.classes is not None:
                self.kernel.after(HELD_TOLD_S, self._tell_held, rank=2)
            if self._setup.sample_interval_s:
                self.kernel.at(0.0, self._sample, rank=2)
            self.kernel.run()
        outcome = self._outcome
        self._observer.finish()
        outcome.end_s = self.kernel.now
        outcome.events = self.kernel.executed
        outcome.lives = list(self._launcher.lives.values())
        outcome.drains = self._scheduler.drain_reports()
        return outcome

    @property
    def size(self) -> int:
        return self._launcher.existing

    # ------------------------------------------------------------------ requests

    def finished(self, request: SimRequest) -> None:
        self._front_end.finished(request)

    def left(self, request: SimRequest) -> None:
        self._front_end.left(request)

    def _one_over(self) -> None:
        """A client has its request to its end."""
        self._unfinished -= 1
        if self._progress is not None and self._unfinished % 256 == 0:
            self._progress(len(self._requests) - self._unfinished, self.kernel.now)
        if not self._unfinished:
            self.kernel.stop()

    def ask_front_end(self, doubt: Doubt) -> None:
        self._front_end.ask(doubt)

    def noticed(self, notice: AnyNotice) -> None:
        self._front_end.noticed(notice)

    def is_fenced(self, request: RequestId, epoch: Epoch) -> bool:
        return self._front_end.is_fenced(request, epoch)

    # ------------------------------------------------------------------ between instances

    def request(self, request: RequestId) -> SimRequest:
        return self._front_end.by_id[request]

    def step_cost(self, instance: InstanceId) -> StepCost:
        """The profile's own, as far as four numbers can say it; wrong by a factor of the instance's own if so asked."""
        draw = Random(f"{self._setup.seed} {instance}")
        return step_cost(self.profile, exp(draw.gauss(0.0, self._setup.step_cost_error)))

    def new_llumlet(self, instance: InstanceId) -> Llumlet:
        policy = self._setup.policy
        begin = LlumletBegin(
            instance=instance,
            policy=policy.policy,
            config=self._setup.migration,
            cooldown_s=policy.request_cooldown_s,
        )
        return begin.make(recorder(instance, begin))

    def send(self, to: InstanceId, message: AnyMessage) -> None:
        receiver = self._instances.get(to)
        if receiver is not None:
            self._network.deliver(receiver.receive, message)

    def copy(self, source: InstanceId, target: InstanceId, blocks: int, done: CopyEnded) -> bool:
        giver = self._instances.get(source)
        if giver is None:
            return False
        self._network.copy(giver, self._instances[target], blocks, done)
        return True

    # ------------------------------------------------------------------ to the scheduler, and by hand

    def reported(self, snapshot: InstanceSnapshot, late_s: float) -> None:
        self.kernel.after(late_s + self._network.message_s, self._take_report, snapshot)

    def _take_report(self, snapshot: InstanceSnapshot) -> None:
        if snapshot.id not in self._instances:
            return
        self._front_end.on_report(snapshot)
        self._scheduler.tell(sched.LoadReported(at=self.kernel.now, snapshot=snapshot))

    def prefixes_told(self, instance: InstanceId, news: PrefixNews) -> None:
        self.kernel.after(self._network.message_s, self._front_end.on_prefixes, instance, news)

    def move_answered(self, outcome: MoveOutcome) -> None:
        if outcome.request is not None:
            self._observer.migration_ended(self.kernel.now, self._front_end.by_id[outcome.request], outcome)
        if outcome.order.is_onward:
            return  # the front end's order, who hears of it in the stream
        ended = sched.MigrationEnded(at=self.kernel.now + self._network.message_s, outcome=outcome)
        self._network.deliver(self._schedule, ended)

    def _schedule(self, event: sched.SchedulerEvent) -> None:
        self._scheduler.tell(event)

    def _tell_held(self) -> None:
        requests, tokens = self._front_end.held
        self._schedule(sched.DemandHeld(at=self.kernel.now, front_end=0, requests=requests, tokens=tokens))
        self.kernel.after(HELD_TOLD_S, self._tell_held, rank=2)

    def _move_by_hand(self, move: PlannedMove) -> None:
        order = MoveOrder(
            move_id=MoveId(f"planned-{move.request}-{self.kernel.now:g}"),
            target=instance_name(move.target),
            cause=MoveCause.BY_HAND,
            reason="asked for",
            request=RequestId(move.request),
        )
        self._instances[instance_name(move.source)].move_out(order)

    def _sample(self) -> None:
        self._observer.sample(self.kernel.now, self._instances)
        self.kernel.after(self._setup.sample_interval_s, self._sample, rank=2)
