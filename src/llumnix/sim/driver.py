"""The simulated body: front end, scheduler process, launcher and network around the objects that serve live.

`simulate(requests, setup)` runs a workload to its end in virtual time. The `Dispatcher`, `GlobalScheduler` and
`Llumlet` in here are the live ones; what this module adds is what the live processes add: it carries messages
with their travel time, starts and stops instances, and places the requests of a dead one anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import assert_never

from llumnix.config import PolicyConfig, ScalingConfig
from llumnix.control import scheduler_events as sched
from llumnix.control.drain import DrainLimits, drain_limits
from llumnix.control.fleet import Fleet
from llumnix.control.llumlet import Llumlet
from llumnix.control.messages import AnyMessage, AnyNotice, Doubt
from llumnix.control.orders import MoveId, MoveOrder, MoveOutcome
from llumnix.control.replay import LlumletBegin, SchedulerBegin
from llumnix.control.scaling import ScalingMode
from llumnix.errors import UsageError
from llumnix.policy.autoscaling import ScaleIn, ScaleOut
from llumnix.policy.autoscaling_paper import PAPER_CHECK_INTERVAL_S, paper_scale
from llumnix.policy.catalogue import find_policy
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.recording import recorder
from llumnix.sim.engine.engine import Scheduler
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.engine.vllm01 import PrefillFirst
from llumnix.sim.engine.vllm1 import TokenBudget
from llumnix.sim.faults import Fault, FaultKind, draw_victims
from llumnix.sim.front_end import SimFrontEnd
from llumnix.sim.instance import SimInstance
from llumnix.sim.kernel import Kernel, Timer
from llumnix.sim.network import CopyEnded, Network
from llumnix.sim.observer import RunObserver
from llumnix.sim.outcome import InstanceLife, Outcome
from llumnix.sim.setup import PlannedMove, RunSetup, instance_name
from llumnix.types import Epoch, InstanceId, RequestId
from llumnix.workload.workload import Workload

DEATH_NOTICED_S = 0.1
"""From the death of a process until everybody knows (its socket and its process handle tell)."""


PATIENT = DrainLimits(timeout_s=1e9, grace_s=1e9)
"""Of the paper's artifact, where a drain has no deadline: what cannot move ends where it is. (Not infinite: recordings
are JSON, which has no such number.)"""


Progress = Callable[[int, float], None]
"""Called now and then with the number of finished requests and the virtual time."""


def local_scheduler(kind: str, policy: PolicyConfig) -> Scheduler:
    """Of every instance, by the profile's name for it."""
    if kind == "vllm-0.1":
        return PrefillFirst()
    assert kind == "vllm-1", kind
    return TokenBudget(displaces=policy.displace and find_policy(policy.policy).priorities)


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
        )
        for index, one in enumerate(workload.requests)
    ]


def _together(hashes: tuple[int, ...], count: int) -> tuple[int, ...]:
    """One id for each `count`; the rest fills no unit, and is shared with nobody."""
    return tuple(hash(hashes[end - count : end]) for end in range(count, len(hashes) + 1, count))


def simulate(requests: Sequence[SimRequest], setup: RunSetup, progress: Progress | None = None) -> Outcome:
    """Runs all requests to their end. Raises UsageError for one that no instance could ever hold."""
    most = setup.profile.max_sequence_tokens
    for request in requests:
        if request.prompt_tokens + request.output_tokens > most:
            raise UsageError(
                f"Request {request.id} has {request.prompt_tokens} + {request.output_tokens} tokens, but an instance "
                f"of {setup.profile.name} holds at most {most}; cut the workload with `total={most}`."
            )
    return _Run(requests, setup, progress).run()


class _Run:
    """One run: the state of the world, as the instances see it (`World`)."""

    def __init__(self, requests: Sequence[SimRequest], setup: RunSetup, progress: Progress | None) -> None:
        self.kernel = Kernel()
        self.profile = setup.profile
        self.cluster = setup.cluster
        self.paper_body = setup.paper_body
        self.size = setup.instances
        self._setup = setup
        self._progress = progress
        self._policy = find_policy(setup.policy.policy)
        self.relief_steps = setup.policy.relief_steps if self._policy.relief else 0
        begin = SchedulerBegin(
            policy=setup.policy,
            instance_timeout_s=setup.cluster.instance_timeout_s,
            step_timeout_s=setup.cluster.step_timeout_s,
            limits=PATIENT if self.paper_body else drain_limits(setup.cluster, setup.migration),
            scaling=None if setup.paper_body else setup.scaling,
            mode=ScalingMode.ON,
        )
        self._scheduler = begin.make()
        self._record = recorder("scheduler", begin)
        self._network = Network(self.kernel, setup.profile)
        self._local_scheduler = local_scheduler(setup.profile.scheduler.kind, setup.policy)
        self._requests = sorted(requests, key=lambda request: (request.arrival_s, request.index))
        if self._policy.priorities and setup.profile.scheduler.priorities:
            for request in self._requests:
                request.order = (request.priority, request.arrival_s, request.index)
        self._instances: dict[InstanceId, SimInstance] = {}
        self._front_end = SimFrontEnd(
            self._requests, setup, self.kernel, self._network, self._instances, self._one_over
        )
        self._wake: Timer | None = None
        self._unfinished = len(self._requests)
        self._outcome = Outcome(requests=self._requests)
        self._lives: dict[InstanceId, InstanceLife] = {}
        self._last_order = 0
        self._observer = RunObserver(self._outcome, self._policy.priority_target_tokens(setup.policy))

    def run(self) -> Outcome:
        for _ in range(self._setup.instances):
            self._start_instance(self._new_life())
        if self._requests:
            self._front_end.start()
            for fault in draw_victims(self._setup.faults, self._setup.instances, self._setup.seed):
                self.kernel.at(fault.at_s, self._strike, fault)
            for move in self._setup.moves:
                self.kernel.at(move.at_s, self._move_by_hand, move)
            for drain in self._setup.drains:
                order = sched.DrainRequested(at=drain.at_s, instance=instance_name(drain.instance))
                self.kernel.at(drain.at_s, self._schedule, order)
            if self._setup.scaling is not None and self._setup.paper_body:
                self.kernel.after(PAPER_CHECK_INTERVAL_S, self._scale_as_the_paper, self._setup.scaling, rank=2)
            if self._setup.sample_interval_s:
                self.kernel.at(0.0, self._sample, rank=2)
            self.kernel.run()
        outcome = self._outcome
        self._observer.finish()
        outcome.end_s = self.kernel.now
        outcome.events = self.kernel.executed
        outcome.lives = list(self._lives.values())
        outcome.drains = self._scheduler.drains.reports(self.kernel.now)
        outcome.bytes_copied = self._network.bytes_copied
        outcome.copy_s = self._network.copy_s
        return outcome

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
        self._post(to, message)

    def _post(self, to: InstanceId, message: AnyMessage) -> None:
        receiver = self._instances.get(to)
        if receiver is not None:
            self._network.deliver(receiver.receive, message)

    def copy(self, source: InstanceId, target: InstanceId, blocks: int, done: CopyEnded) -> bool:
        giver = self._instances.get(source)
        if giver is None:
            return False
        self._network.copy(giver, self._instances[target], blocks, done)
        return True

    # ------------------------------------------------------------------ the scheduler process

    def reported(self, snapshot: InstanceSnapshot, late_s: float) -> None:
        self.kernel.after(late_s + self._network.message_s, self._take_report, snapshot)

    def _take_report(self, snapshot: InstanceSnapshot) -> None:
        if snapshot.id not in self._instances:
            return
        self._front_end.on_report(snapshot)
        self._schedule(sched.LoadReported(at=self.kernel.now, snapshot=snapshot))

    def move_answered(self, outcome: MoveOutcome) -> None:
        if outcome.request is not None:
            self._observer.migration_ended(self.kernel.now, self._front_end.by_id[outcome.request], outcome)
        ended = sched.MigrationEnded(at=self.kernel.now + self._network.message_s, outcome=outcome)
        self._network.deliver(self._schedule, ended)

    def _schedule(self, event: sched.SchedulerEvent) -> None:
        commands = self._scheduler.handle(event)
        if self._record is not None:
            self._record(event, commands)
        for command in commands:
            self._obey(command)

    def _obey(self, command: sched.SchedulerCommand) -> None:
        match command:
            case sched.RoundAt():
                self._wake_at(command.at)
            case sched.MoveRequest():
                source = self._instances.get(command.source)
                if source is not None:
                    self._network.deliver(source.move_out, command.order)
            case sched.SetDraining():
                leaver = self._instances.get(command.instance)
                if leaver is not None:
                    self._network.deliver(leaver.set_draining, command.draining, command.keep)
            case sched.ReplayRest():
                self._network.deliver(self._drive_out, command.instance, command.reason)
            case sched.StopInstance():
                self._remove(command.instance, "stopped")
            case sched.DeclareLost():
                self._kill(command.instance)
            case sched.StartInstances():
                for _ in range(command.count):
                    self.kernel.after(self.profile.host.start_up_s, self._start_instance, self._new_life())
                self._last_order = command.order
                self._tell_fleet()
            case sched.DrainFinished() | sched.ScalingDecided():
                pass
            case _:
                assert_never(command)

    def _wake_at(self, at: float) -> None:
        if self._wake is not None:
            self.kernel.cancel(self._wake)
        self._wake = self.kernel.at(max(at, self.kernel.now), self._wake_scheduler, rank=2)

    def _drive_out(self, instance: InstanceId, why: str) -> None:
        count = self._front_end.drive_out(instance, why)
        answer = sched.RequestsReplayed(at=self.kernel.now + self._network.message_s, instance=instance, count=count)
        self._network.deliver(self._schedule, answer)

    def _move_by_hand(self, move: PlannedMove) -> None:
        order = MoveOrder(
            move_id=MoveId(f"planned-{move.request}-{self.kernel.now:g}"),
            target=instance_name(move.target),
            reason="asked for",
            request=RequestId(move.request),
        )
        self._instances[instance_name(move.source)].move_out(order)

    def _wake_scheduler(self) -> None:
        self._wake = None
        self._schedule(sched.RoundDue(at=self.kernel.now))

    # ------------------------------------------------------------------ the launcher, and what goes wrong

    def _scale_as_the_paper(self, config: ScalingConfig) -> None:
        decision = paper_scale(self._scheduler.snapshot(self.kernel.now), self._starting, config)
        if isinstance(decision, ScaleOut):
            self._schedule(sched.StartRequested(at=self.kernel.now, count=decision.count))
        elif isinstance(decision, ScaleIn):
            self._schedule(sched.DrainRequested(at=self.kernel.now, instance=decision.instance))
        self.kernel.after(PAPER_CHECK_INTERVAL_S, self._scale_as_the_paper, config, rank=2)

    @property
    def _starting(self) -> int:
        """Instances that were ordered and do not serve yet."""
        return self._existing - len(self._instances)

    @property
    def _existing(self) -> int:
        return sum(1 for life in self._lives.values() if life.ended_s is None)

    def _tell_fleet(self) -> None:
        """The launcher's count, for auto-scaling."""
        if self._setup.scaling is not None and not self._setup.paper_body:
            fleet = Fleet(serving=len(self._instances), starting=self._starting, last_order=self._last_order)
            self._schedule(sched.FleetReported(at=self.kernel.now, fleet=fleet))

    def _new_life(self) -> InstanceLife:
        """An instance is ordered, and paid for from now on."""
        name = instance_name(len(self._lives))
        life = self._lives[name] = InstanceLife(name, self.kernel.now)
        self.size = self._existing
        return life

    def _start_instance(self, life: InstanceLife) -> None:
        name = InstanceId(life.instance)
        instance = SimInstance(name, self, self._local_scheduler, self._setup.unit_tokens)
        self._instances[name] = instance
        self._schedule(sched.InstanceStarted(at=self.kernel.now, instance=name))
        # An instance counts as started when its first report is there.
        self._take_report(instance.reports.snapshot())
        if self.paper_body or self.kernel.now == 0:
            self._front_end.admit(name)
        else:
            # The scheduler may have requests moved there by now; the front end greets it first.
            self.kernel.after(2 * self._network.message_s, self._front_end.admit, name)
        self._tell_fleet()

    def _remove(self, name: InstanceId, why: str) -> None:
        instance = self._instances.pop(name, None)
        if instance is None:
            return
        lost = instance.die()
        self._lives[name].ended_s = self.kernel.now
        self.size = self._existing
        self._network.lose(name)
        for request in lost:
            self._front_end.left(request)
        self.kernel.after(DEATH_NOTICED_S, self._mourn, name, why)

    def _mourn(self, name: InstanceId, why: str) -> None:
        """Everybody hears that an instance is gone; its requests go on elsewhere with their tokens so far."""
        self._front_end.on_removed(name)
        for instance in list(self._instances.values()):
            instance.lose_peer(name)
        self._schedule(sched.InstanceLost(at=self.kernel.now, instance=name, why=why))
        self._tell_fleet()
        self._front_end.on_departed(name)

    def _kill(self, name: InstanceId) -> None:
        if name in self._instances:
            self._remove(name, "lost")
            if self._setup.restart_instances:
                self.kernel.after(self.profile.host.start_up_s, self._start_instance, self._new_life())
                self._tell_fleet()

    def _strike(self, fault: Fault) -> None:
        victim = None if fault.instance is None else self._instances.get(instance_name(fault.instance))
        if fault.kind is FaultKind.SLOW_LINK:
            self._network.slowness = fault.factor
            self.kernel.after(fault.duration_s, self._mend_links)
        elif victim is None:
            pass  # it is gone already
        elif fault.kind is FaultKind.CRASH:
            self._kill(victim.id)
        elif fault.kind is FaultKind.STALL:
            victim.engine.steps.stall(fault.duration_s)
        else:
            victim.hang(fault.duration_s)

    def _mend_links(self) -> None:
        self._network.slowness = 1.0

    # ------------------------------------------------------------------ the time series

    def _sample(self) -> None:
        self._observer.sample(self.kernel.now, self._instances)
        self.kernel.after(self._setup.sample_interval_s, self._sample, rank=2)
