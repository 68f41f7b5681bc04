"""The simulated scheduler process: the scheduler that serves live, and a hand for each of its commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from llumnix.config import ScalingConfig
from llumnix.control import scheduler_events as sched
from llumnix.control.drain import DrainLimits, drain_limits
from llumnix.control.replay import SchedulerBegin
from llumnix.control.scaling import ScalingMode
from llumnix.journal.of_cluster import ClusterNotes
from llumnix.policy.autoscaling import ScaleIn, ScaleOut
from llumnix.policy.autoscaling_paper import PAPER_CHECK_INTERVAL_S, paper_scale
from llumnix.recording import recorder
from llumnix.sim.front_end import SimFrontEnd
from llumnix.sim.instance import SimInstance
from llumnix.sim.kernel import Kernel, Timer
from llumnix.sim.launcher import SimLauncher
from llumnix.sim.network import Network
from llumnix.sim.setup import RunSetup
from llumnix.types import InstanceId

PATIENT = DrainLimits(timeout_s=1e9, grace_s=1e9)
"""Of the paper's artifact, where a drain has no deadline: what cannot move ends where it is. (Not infinite: recordings
are JSON, which has no such number.)"""


class SimScheduler:
    """`tell` it what happens; what it asks for is on its way then."""

    def __init__(
        self,
        setup: RunSetup,
        kernel: Kernel,
        network: Network,
        instances: Mapping[InstanceId, SimInstance],
        front_end: SimFrontEnd,
        launcher: SimLauncher,
    ) -> None:
        self.notes: ClusterNotes | None = None
        """Of what it hears and decides, if anybody wants to know."""
        begin = SchedulerBegin(
            policy=setup.policy,
            instance_timeout_s=setup.cluster.instance_timeout_s,
            step_timeout_s=setup.cluster.step_timeout_s,
            limits=PATIENT if setup.paper_body else drain_limits(setup.cluster, setup.migration),
            scaling=None if setup.paper_body else setup.scaling,
            mode=ScalingMode.ON,
        )
        self._machine = begin.make()
        self._record = recorder("scheduler", begin)
        self._kernel = kernel
        self._network = network
        self._instances = instances
        self._front_end = front_end
        self._launcher = launcher
        self._wake: Timer | None = None

    def drain_reports(self) -> list[sched.DrainReport]:
        return self._machine.drains.reports(self._kernel.now)

    def tell(self, event: sched.SchedulerEvent) -> None:
        commands = self._machine.handle(event)
        if self._record is not None:
            self._record(event, commands)
        if self.notes is not None:
            self.notes.handled(event, commands, self._machine.last_round)
        for command in commands:
            self._obey(command)

    def _obey(self, command: sched.SchedulerCommand) -> None:
        match command:
            case sched.RoundAt():
                self._wake_at(command.at)
            case sched.MoveRequest() | sched.SetDraining() | sched.SetRole():
                self._tell_instance(command)
            case sched.AskWhereCached():
                self._network.deliver(self._find_cached, command.instance)
            case sched.ReplayRest():
                self._network.deliver(self._drive_out, command.instance, command.reason)
            case sched.StopInstance():
                self._launcher.stop(command.instance)
            case sched.DeclareLost():
                self._launcher.kill(command.instance)
            case sched.StartInstances():
                self._launcher.start(command)
            case sched.DrainFinished() | sched.ScalingDecided() | sched.RolesAdvised():
                pass
            case _:
                assert_never(command)

    def _tell_instance(self, command: sched.MoveRequest | sched.SetDraining | sched.SetRole) -> None:
        instance = self._instances.get(command.source if isinstance(command, sched.MoveRequest) else command.instance)
        if instance is None:
            return
        match command:
            case sched.MoveRequest():
                self._network.deliver(instance.move_out, command.order)
            case sched.SetDraining():
                self._network.deliver(instance.set_draining, command.draining, command.keep)
            case sched.SetRole():
                self._launcher.give_role(command)
                self._network.deliver(instance.set_role, command.role)
            case _:
                assert_never(command)

    def _wake_at(self, at: float) -> None:
        if self._wake is not None:
            self._kernel.cancel(self._wake)
        self._wake = self._kernel.at(max(at, self._kernel.now), self._wake_up, rank=2)

    def _wake_up(self) -> None:
        self._wake = None
        self.tell(sched.RoundDue(at=self._kernel.now))

    def _find_cached(self, instance: InstanceId) -> None:
        at, where = self._kernel.now + self._network.message_s, self._front_end.where_cached(instance)
        self._network.deliver(self.tell, sched.CachedElsewhere(at=at, instance=instance, where=where))

    def _drive_out(self, instance: InstanceId, why: str) -> None:
        count = self._front_end.drive_out(instance, why)
        answer = sched.RequestsReplayed(at=self._kernel.now + self._network.message_s, instance=instance, count=count)
        self._network.deliver(self.tell, answer)

    def scale_as_the_paper(self, config: ScalingConfig) -> None:
        """From now on, again and again."""
        self._kernel.after(PAPER_CHECK_INTERVAL_S, self._scale_as_the_paper, config, rank=2)

    def _scale_as_the_paper(self, config: ScalingConfig) -> None:
        decision = paper_scale(self._machine.snapshot(self._kernel.now), self._launcher.starting, config)
        if isinstance(decision, ScaleOut):
            self.tell(sched.StartRequested(at=self._kernel.now, count=decision.count))
        elif isinstance(decision, ScaleIn):
            self.tell(sched.DrainRequested(at=self._kernel.now, instance=decision.instance))
        self.scale_as_the_paper(config)
