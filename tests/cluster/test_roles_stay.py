"""However an instance comes to be replaced, whoever comes after it has its role: launcher and scheduler together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_supervisor import Server

from llumnix.cluster.nursery_messages import ForkInstance, Leaving
from llumnix.cluster.supervision import Announce, InstanceServes, Signal, SupervisorEvent
from llumnix.config import PolicyConfig
from llumnix.control import scheduler_events as control
from llumnix.control.scheduler import GlobalScheduler
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.roles_config import RolesConfig
from llumnix.types import InstanceId, InstanceState, Role
from llumnix.wire.news import InstanceGone
from llumnix.wire.to_scheduler import DrainInstance

pytestmark = pytest.mark.pure

CONFIGURED = RolesConfig(prefill_instances=1, decode_instances=2)


class Instance:
    """An engine without work: what it is told, it reports."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = InstanceState.RUNNING
        self.keep = False

    def take(self, order: control.SetRole | control.SetDraining) -> None:
        if isinstance(order, control.SetRole):
            self.role = order.role
        else:
            self.state = InstanceState.DRAINING if order.draining else InstanceState.RUNNING
            self.keep = order.keep


class Cluster:
    """All orders are carried out at once."""

    def __init__(self) -> None:
        self.at = 0.0
        self.reports = 0
        self.instances: dict[InstanceId, Instance] = {}
        self.scheduler = GlobalScheduler(PolicyConfig(roles=CONFIGURED), instance_timeout_s=1e9)
        self.launcher = Server(instances=5, roles=CONFIGURED)
        self.fails = False
        """Who starts now breaks at once."""
        self.launch(control.StopInstance(instance=InstanceId("nobody"), reason="to begin with something"))
        self.wait()

    @property
    def roles(self) -> Counter[Role]:
        assert all(instance.state is InstanceState.RUNNING for instance in self.instances.values())
        return Counter(instance.role for instance in self.instances.values())

    def launch(self, event: SupervisorEvent) -> None:
        for command in self.launcher.handle(event, self.at):
            match command:
                case ForkInstance(id=name, role=role):
                    self.instances[name] = Instance(role)
                case Signal(child=name) if name in self.instances:
                    self.die(InstanceId(name))
                case Announce(message=DrainInstance() as drain):
                    self.decide(control.DrainRequested(at=self.at, instance=drain.instance, keep=False, firm=True))
                case Announce(message=InstanceGone() as gone):
                    self.decide(control.InstanceLost(at=self.at, instance=gone.instance, why=gone.why))

    def decide(self, event: control.SchedulerEvent) -> None:
        for command in self.scheduler.handle(event):
            match command:
                case control.SetRole():
                    self.instances[command.instance].take(command)
                    self.launch(command)
                case control.SetDraining():
                    self.instances[command.instance].take(command)
                case control.StartInstances() | control.StopInstance() | control.DeclareLost():
                    self.launch(command)

    def die(self, name: InstanceId) -> None:
        del self.instances[name]
        for command in self.launcher.exit(name, self.at):
            if isinstance(command, ForkInstance):
                self.instances[command.id] = Instance(command.role)
            elif isinstance(command, Announce) and isinstance(command.message, InstanceGone):
                self.decide(control.InstanceLost(at=self.at, instance=name, why="it is gone"))

    def wait(self) -> None:
        """Until all is done that was begun: each pause is over, and who drains is gone."""
        for _ in range(8):
            self.at += 20.0
            self.launch(control.StopInstance(instance=InstanceId("nobody"), reason="time passes"))
            for name, instance in list(self.instances.items()):
                if self.fails and f"ipc://{name}" not in self.launcher.supervisor.mailboxes:
                    self.die(name)
                    continue
                self.reports += 1
                snapshot = InstanceSnapshot(
                    id=name,
                    at=self.at,
                    seq=self.reports,
                    state=instance.state,
                    role=instance.role,
                    drain_keep=instance.keep,
                    total_blocks=100,
                    free_blocks=100,
                )
                self.launch(
                    InstanceServes(name, f"ipc://{name}", snapshot.goes, instance.state is InstanceState.DRAINING)
                )
                self.decide(control.LoadReported(at=self.at, snapshot=snapshot))
            self.decide(control.RoundDue(at=self.at))


def dies(cluster: Cluster, name: InstanceId) -> None:
    cluster.die(name)


def hangs(cluster: Cluster, name: InstanceId) -> None:
    cluster.launch(control.DeclareLost(instance=name, why="it hangs"))


def loses_its_machine(cluster: Cluster, name: InstanceId) -> None:
    cluster.launch(Leaving(child=name, why="its machine goes", left_s=60.0))


def is_restarted_in_its_turn(cluster: Cluster, name: InstanceId) -> None:
    cluster.decide(control.StartRequested(at=cluster.at, count=1, replaces=name))
    cluster.wait()
    cluster.decide(control.DrainRequested(at=cluster.at, instance=name))


def is_scaled_away_and_another_one_comes_back(cluster: Cluster, name: InstanceId) -> None:
    cluster.decide(control.DrainRequested(at=cluster.at, instance=name))
    cluster.wait()
    cluster.decide(control.StartRequested(at=cluster.at, count=1))


def is_drained_and_taken_back(cluster: Cluster, name: InstanceId) -> None:
    cluster.decide(control.DrainRequested(at=cluster.at, instance=name, keep=True))
    cluster.wait()
    cluster.decide(control.DrainWithdrawn(at=cluster.at, instance=name))


def was_to_be_replaced_by_one_that_does_not_start(cluster: Cluster, name: InstanceId) -> None:
    cluster.fails = True
    cluster.decide(control.StartRequested(at=cluster.at, count=1, replaces=name))
    cluster.wait()
    cluster.fails = False


WAYS = (
    dies,
    hangs,
    loses_its_machine,
    is_restarted_in_its_turn,
    is_scaled_away_and_another_one_comes_back,
    is_drained_and_taken_back,
    was_to_be_replaced_by_one_that_does_not_start,
)


@given(st.lists(st.tuples(st.sampled_from([*WAYS, *Role]), st.integers(0, 4)), min_size=1, max_size=12))
def test_role_stays_whatever_happens_to_who_has_it(
    story: list[tuple[Callable[[Cluster, InstanceId], None] | Role, int]],
) -> None:
    """Those given by hand, too."""
    cluster = Cluster()
    assert cluster.roles == {Role.PREFILL: 1, Role.DECODE: 2, Role.MIXED: 2}
    for happens, who in story:
        before, name = cluster.roles, sorted(cluster.instances)[who]
        role, others = cluster.instances[name].role, cluster.instances.keys() - {name}
        if isinstance(happens, Role):
            cluster.decide(control.RoleWanted(at=cluster.at, instance=name, role=happens))
            assert cluster.roles == before - Counter([role]) + Counter([happens])
            continue
        happens(cluster, name)
        cluster.wait()
        (successor,) = cluster.instances.keys() - others
        assert cluster.instances[successor].role is role
        assert cluster.roles == before
