"""The simulated launcher: instances start, end and die, and everybody hears of it. The faults of a run strike here."""

from __future__ import annotations

from collections.abc import Callable

from llumnix.config import PolicyConfig
from llumnix.control import scheduler_events as sched
from llumnix.control.fleet import Fleet
from llumnix.control.wanted_roles import WantedRoles
from llumnix.policy.catalogue import find_policy
from llumnix.sim.engine.engine import Scheduler
from llumnix.sim.engine.vllm01 import PrefillFirst
from llumnix.sim.engine.vllm1 import TokenBudget
from llumnix.sim.faults import Fault, FaultKind, draw_victims
from llumnix.sim.front_end import SimFrontEnd
from llumnix.sim.instance import SimInstance
from llumnix.sim.network import Network
from llumnix.sim.outcome import InstanceLife
from llumnix.sim.profiles.cost_model import SchedulerProfile
from llumnix.sim.setup import RunSetup, instance_name
from llumnix.sim.world import World
from llumnix.types import InstanceId, Role

DEATH_NOTICED_S = 0.1
"""From the death of a process until everybody knows (its socket and its process handle tell)."""


def local_scheduler(profile: SchedulerProfile, config: PolicyConfig) -> Scheduler:
    """Of every instance."""
    if profile.kind == "vllm-0.1":
        return PrefillFirst()
    assert profile.kind == "vllm-1", profile.kind
    policy = find_policy(config.policy)
    return TokenBudget(config.displace and policy.priorities, policy.small_first and profile.priorities)


class SimLauncher:
    """Keeps `instances`, the cluster as it is. `tell` tells the scheduler what happens."""

    def __init__(
        self,
        setup: RunSetup,
        world: World,
        network: Network,
        instances: dict[InstanceId, SimInstance],
        front_end: SimFrontEnd,
        tell: Callable[[sched.SchedulerEvent], None],
    ) -> None:
        self.lives: dict[InstanceId, InstanceLife] = {}
        """Of all instances that were ever ordered."""
        self.existing = setup.instances
        """Those that were ordered and have not ended."""
        self._setup = setup
        self._world = world
        self._kernel = world.kernel
        self._network = network
        self._instances = instances
        self._front_end = front_end
        self._tell = tell
        self._local_scheduler = local_scheduler(setup.profile.scheduler, setup.policy)
        self._last_order = 0
        self._wanted_roles = WantedRoles(setup.policy.roles)
        self._roles: dict[InstanceId, Role] = {}
        """Of those that exist."""

    @property
    def starting(self) -> int:
        """Instances that were ordered and do not serve yet."""
        return self.existing - len(self._instances)

    def start_all(self) -> None:
        """The first instances serve at once."""
        for _ in range(self._setup.instances):
            self._start_instance(self._new_life())

    def plan_faults(self) -> None:
        for fault in draw_victims(self._setup.faults, self._setup.instances, self._setup.seed):
            self._kernel.at(fault.at_s, self._strike, fault)

    # ------------------------------------------------------------------ what the scheduler asks for

    def start(self, order: sched.StartInstances) -> None:
        for _ in range(order.count):
            self._start_later()
        self._last_order = order.order
        self._tell_fleet()

    def stop(self, name: InstanceId) -> None:
        self._remove(name, "stopped")

    def give_role(self, order: sched.SetRole) -> None:
        """The instance is told, too."""
        if order.instance in self._roles:
            self._wanted_roles.change(self._roles[order.instance], order.role)
            self._roles[order.instance] = order.role

    def kill(self, name: InstanceId) -> None:
        """It is gone at once, and another one takes its place."""
        if name in self._instances:
            role = self._roles[name]
            self._remove(name, "lost")
            if self._setup.restart_instances:
                self._start_later(role)
                self._tell_fleet()

    # ------------------------------------------------------------------ lives

    def _start_later(self, role: Role | None = None) -> None:
        self._kernel.after(self._world.profile.host.start_up_s, self._start_instance, self._new_life(role))

    def _new_life(self, role: Role | None = None) -> InstanceLife:
        """An instance is ordered, and paid for from now on. Without a role it gets one that is missing."""
        name = instance_name(len(self.lives))
        life = self.lives[name] = InstanceLife(name, self._kernel.now)
        self._roles[name] = role or self._wanted_roles.of_another(self._roles.values())
        self._count()
        return life

    def _count(self) -> None:
        self.existing = sum(1 for life in self.lives.values() if life.ended_s is None)

    def _start_instance(self, life: InstanceLife) -> None:
        name = InstanceId(life.instance)
        instance = SimInstance(name, self._world, self._local_scheduler, self._setup.unit_tokens)
        instance.take_role(self._roles[name])
        self._instances[name] = instance
        self._tell(sched.InstanceStarted(at=self._kernel.now, instance=name))
        # An instance counts as started when its first report is there.
        report = instance.reports.snapshot()
        self._front_end.on_report(report)
        self._tell(sched.LoadReported(at=self._kernel.now, snapshot=report))
        if self._world.paper_body or self._kernel.now == 0:
            self._front_end.admit(name)
        else:
            # The scheduler may have requests moved there by now; the front end greets it first.
            self._kernel.after(2 * self._network.message_s, self._front_end.admit, name)
        self._tell_fleet()

    def _remove(self, name: InstanceId, why: str) -> None:
        instance = self._instances.pop(name, None)
        if instance is None:
            return
        del self._roles[name]
        lost = instance.die()
        self.lives[name].ended_s = self._kernel.now
        self._count()
        self._network.lose(name)
        for request in lost:
            self._front_end.left(request)
        self._kernel.after(DEATH_NOTICED_S, self._mourn, name, why)

    def _mourn(self, name: InstanceId, why: str) -> None:
        """Everybody hears that an instance is gone; its requests go on elsewhere with their tokens so far."""
        self._front_end.on_removed(name)
        for instance in list(self._instances.values()):
            instance.lose_peer(name)
        self._tell(sched.InstanceLost(at=self._kernel.now, instance=name, why=why))
        self._tell_fleet()
        self._front_end.on_departed(name)

    def _tell_fleet(self) -> None:
        """The launcher's count, for auto-scaling."""
        if self._setup.scaling is not None and not self._world.paper_body:
            fleet = Fleet(serving=len(self._instances), starting=self.starting, last_order=self._last_order)
            self._tell(sched.FleetReported(at=self._kernel.now, fleet=fleet))

    # ------------------------------------------------------------------ what goes wrong

    def _strike(self, fault: Fault) -> None:
        victim = None if fault.instance is None else self._instances.get(instance_name(fault.instance))
        if fault.kind is FaultKind.SLOW_LINK:
            self._network.slowness = fault.factor
            self._kernel.after(fault.duration_s, self._mend_links)
        elif victim is None:
            pass  # it is gone already
        elif fault.kind is FaultKind.CRASH:
            self.kill(victim.id)
        elif fault.kind is FaultKind.STALL:
            victim.engine.steps.stall(fault.duration_s)
        elif fault.kind is FaultKind.SLOW:
            victim.engine.steps.set_drag(fault.factor)
            self._kernel.after(fault.duration_s, victim.engine.steps.set_drag, 1.0)
        else:
            victim.hang(fault.duration_s)

    def _mend_links(self) -> None:
        self._network.slowness = 1.0
