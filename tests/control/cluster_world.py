"""All machines of a server together: scheduler, front ends, llumlets with tiny engines, and a launcher, under a network
that loses, doubles, delays and reorders.

Every step is one method, chosen by whoever drives it. Mail waits in `link`, in no order, and may be lost: what llumlets
and front ends tell each other, reports, orders and answers. What the live system repeats or sends on a connection that
breaks only with its end is late, but comes: token streams and inboxes in order, `news` of ends in any order, and what
launcher and scheduler tell each other in theirs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, assert_never

from cluster_front_end import ClientStream, ModelFrontEnd
from cluster_instance import ClusterInstance
from migration_pair import HOUR

from llumnix.config import PolicyConfig, ScalingConfig
from llumnix.control import events as ev
from llumnix.control import scheduler_events as sched
from llumnix.control.drain import DrainLimits
from llumnix.control.fleet import Fleet
from llumnix.control.front_end_events import DroveOut
from llumnix.control.messages import Message
from llumnix.control.orders import MoveCause, MoveId, MoveOrder, MoveOutcome
from llumnix.control.scaling import Autoscaler, ScalingMode
from llumnix.control.scheduler import GlobalScheduler
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, InstanceState, RequestId, Role

Address = InstanceId | str | tuple[str, int]
"""A llumlet, the scheduler, or a front end by its index."""

POLICY = PolicyConfig(request_cooldown_s=0.0, relief_steps=4, migrate_out_freeness=4.0, migrate_in_freeness=6.0)
SCALING = ScalingConfig(
    scale_out_freeness=2.0, scale_in_freeness=40.0, scale_window_s=0.5, min_instances=2, max_instances=4
)
INSTANCE_TIMEOUT_S, STEP_TIMEOUT_S = 5.0, 8.0
LIMITS = DrainLimits(timeout_s=3.0, grace_s=3.0, repeat_s=INSTANCE_TIMEOUT_S)


class Cluster:
    def __init__(
        self, instances: int = 3, front_ends: int = 2, total_blocks: int = 40, *, scaling: bool = False
    ) -> None:
        self.now = 0.0
        self.size = front_ends
        self.total_blocks = total_blocks
        self.scaling = scaling
        self.link: list[tuple[Address, Any]] = []
        self.news: list[tuple[Address, sched.InstanceLost, bool]] = []
        """(who, of which end, expected): not heard yet."""
        self.orphanings: list[tuple[InstanceId, int, int]] = []
        """(which instance is to hear, index and incarnation of the front end that is gone)."""
        self.fleets: deque[Fleet] = deque()
        """On their way from the launcher to the scheduler."""
        self.launcher_inbox: deque[sched.SchedulerCommand] = deque()
        self.last_order = 0
        self.stopping: set[InstanceId] = set()
        self.instances: dict[InstanceId, ClusterInstance] = {}
        self.ended: set[InstanceId] = set()
        """Those of whose end there are or were news."""
        self.clients: list[ClientStream] = []
        self.names: set[RequestId] = set()
        self.finished_drains: list[sched.DrainReport] = []
        self.moves_asked = 0
        self.given: set[str] = set()
        """Ids of orders to move."""
        self.schedulers = 0
        self.start_scheduler()
        self.front_ends = [ModelFrontEnd(self, index, 1) for index in range(front_ends)]
        for _ in range(instances):
            self.start_instance()
        self.settle_introductions()

    # processes that start

    def start_instance(self) -> None:
        name = InstanceId(f"i{len(self.instances)}")
        self.instances[name] = ClusterInstance(self, name, self.total_blocks, len(self.instances))
        self.report(name)
        self._tell_fleet()

    def start_scheduler(self) -> None:
        """It knows nothing; who comes after it hears the launcher first."""
        self.schedulers += 1
        self.last_order = 0
        self.alarm: float | None = None
        scaler = Autoscaler(SCALING, ScalingMode.ON if self.scaling else ScalingMode.OFF)
        name = f"s{self.schedulers}"
        self.scheduler = GlobalScheduler(POLICY, INSTANCE_TIMEOUT_S, LIMITS, scaler, STEP_TIMEOUT_S, name)
        self.heard: set[InstanceId] = set()
        """By this scheduler, and not gone as far as it knows."""
        self.buried: set[InstanceId] = set()
        self.fleets.clear()
        self._tell_fleet()

    def replace_front_end(self, index: int) -> None:
        """It dies with its clients' connections, and another one starts."""
        old = self.front_ends[index]
        for client in old.clients.values():
            client.left = True
        for instance in self.instances.values():
            instance.streams.to[index].clear()
        self.link = [(to, mail) for to, mail in self.link if to != ("front end", index)]
        self.news = [each for each in self.news if each[0] != ("front end", index)]
        self.orphanings += [(each.id, index, old.incarnation) for each in self.living]
        self.front_ends[index] = ModelFrontEnd(self, index, old.incarnation + 1)

    # processes that end

    def kill(self, instance: InstanceId, unread: int = 0, expected: bool = False) -> None:
        """Of each of its token streams only the next `unread` words still arrive."""
        dead = self.instances[instance]
        dead.alive = False
        for stream in dead.streams.to:
            while len(stream) > unread:
                stream.pop()
        self._is_gone(instance, expected or instance in self.stopping)
        if instance not in self.stopping:
            self.start_instance()  # the launcher has another one in its place

    def retire(self, instance: InstanceId) -> None:
        """It ends as it was told to."""
        ended = self.instances[instance]
        ended.alive = False
        ended.last_words()
        self._is_gone(instance, expected=True)

    def _is_gone(self, instance: InstanceId, expected: bool, why: str = "it ended") -> None:
        """Everybody is told, perhaps twice: by the scheduler that declares it lost, by the launcher when it ends."""
        self.ended.add(instance)
        lost = sched.InstanceLost(at=self.now, instance=instance, why=why)
        front_ends: list[Address] = [("front end", index) for index in range(self.size)]
        who = [*front_ends, "scheduler", *(other for other in self.instances if other != instance)]
        self.news += [(to, lost, expected) for to in who]
        self._tell_fleet()

    def _tell_fleet(self) -> None:
        self.fleets.append(Fleet(serving=len(self.living), starting=0, last_order=self.last_order))

    # mail

    def post(self, to: Address, mail: Any) -> None:
        self.link.append((to, mail))

    def report(self, instance: InstanceId) -> None:
        snapshot = self.instances[instance].snapshot()
        self.post("scheduler", snapshot)
        for index in range(self.size):
            self.post(("front end", index), snapshot)

    def deliver(self, place: int, *, keep: bool = False) -> None:
        """Hands over one message of the link; with `keep` it will come a second time."""
        to, mail = self.link[place] if keep else self.link.pop(place)
        self.now += 0.001
        if to == "scheduler":
            self._scheduler_gets(mail)
        elif isinstance(to, tuple):
            front_end = self.front_ends[to[1]]
            if isinstance(mail, InstanceSnapshot):
                front_end.on_report(mail)
            else:
                front_end.on_mail(mail)
        elif (instance := self.instances[InstanceId(to)]).hangs:
            instance.unread += 1
        elif instance.alive:
            self._instance_gets(instance, mail)

    def _instance_gets(
        self, instance: ClusterInstance, mail: Message | MoveOrder | sched.SetDraining | sched.SetRole
    ) -> None:
        match mail:
            case MoveOrder():
                instance.ordered(mail)
            case sched.SetDraining():
                instance.set_draining(mail)
            case sched.SetRole():
                instance.role = mail.role
            case Message():
                instance.handle(ev.Received(self.now, mail))  # type: ignore[arg-type]
            case _:
                assert_never(mail)

    def _scheduler_gets(self, mail: InstanceSnapshot | MoveOutcome | DroveOut) -> None:
        match mail:
            case InstanceSnapshot():
                if mail.id not in self.buried:
                    self.heard.add(mail.id)
                    self.tell(sched.LoadReported(at=self.now, snapshot=mail))
            case MoveOutcome():
                self.tell(sched.MigrationEnded(at=self.now, outcome=mail))
            case DroveOut():
                self.tell(sched.RequestsReplayed(at=self.now, instance=mail.instance, count=mail.count))
            case _:
                assert_never(mail)

    def hear(self, place: int) -> None:
        """Somebody hears that an instance is gone."""
        who, lost, expected = self.news.pop(place)
        if who == "scheduler":
            self.heard.discard(lost.instance)
            self.buried.add(lost.instance)
            self.tell(sched.InstanceLost(at=self.now, instance=lost.instance, why=lost.why))
        elif isinstance(who, tuple):
            self.front_ends[who[1]].on_gone(lost.instance, expected)
        elif (instance := self.instances[InstanceId(who)]).alive and not instance.hangs:
            instance.handle(ev.PeerLost(self.now, lost.instance))

    def orphan(self, place: int) -> None:
        who, index, incarnation = self.orphanings.pop(place)
        if (instance := self.instances[who]).alive and not instance.hangs:
            instance.orphaned(index, incarnation)

    # the scheduler, and who asks it

    def move(self, source: InstanceId, target: InstanceId, request: RequestId) -> None:
        """A front end has it moved by hand; the answer is for whoever asked."""
        self.moves_asked += 1
        name = MoveId(f"by hand {self.moves_asked}")
        order = MoveOrder(move_id=name, target=target, cause=MoveCause.BY_HAND, reason="by hand", request=request)
        self.post(source, order)

    def drain(self, instance: InstanceId, keep: bool = False, timeout_s: float | None = None) -> None:
        if instance in self.heard:
            self.tell(sched.DrainRequested(at=self.now, instance=instance, keep=keep, timeout_s=timeout_s))

    def give_role(self, instance: InstanceId, role: Role) -> None:
        if instance in self.heard:
            self.tell(sched.RoleWanted(at=self.now, instance=instance, role=role))

    def undrain(self, instance: InstanceId) -> None:
        if not self.scheduler.drains.why_not_withdrawn(instance):
            self.tell(sched.DrainWithdrawn(at=self.now, instance=instance))

    def tell(self, event: sched.SchedulerEvent) -> None:
        for command in self.scheduler.handle(event):
            self._obey(command)

    def _obey(self, command: sched.SchedulerCommand) -> None:
        match command:
            case sched.MoveRequest():
                order = command.order
                assert order.move_id not in self.given, "two orders of one name"
                self.given.add(order.move_id)
                assert command.source in self.heard, f"{command.source} is gone, and is to give something"
                if order.target in self.heard:
                    self.post(command.source, order)
            case sched.SetDraining() | sched.SetRole():
                self.post(command.instance, command)
            case sched.AskWhereCached() | sched.ReplayRest():
                for index in range(self.size):
                    self.post(("front end", index), command)
            case sched.StartInstances() | sched.StopInstance():
                self.launcher_inbox.append(command)
            case sched.DeclareLost():
                self.launcher_inbox.append(command)
                self.heard.discard(command.instance)
                self.buried.add(command.instance)
                self._is_gone(command.instance, expected=False, why=command.why)
            case sched.DrainFinished():
                self.finished_drains.append(command.report)
            case sched.ScalingDecided() | sched.RolesAdvised():
                pass
            case sched.RoundAt():
                self.alarm = command.at
            case _:
                assert_never(command)

    def hear_launcher(self) -> None:
        self.tell(sched.FleetReported(at=self.now, fleet=self.fleets.popleft()))

    # the launcher

    def obey_scheduler(self) -> None:
        """The launcher carries out the oldest command that it has got."""
        match self.launcher_inbox.popleft():
            case sched.StartInstances() as start:
                self.last_order = start.order
                for _ in range(start.count):
                    self.start_instance()
            case sched.StopInstance(instance=instance, kill=kill):
                self.stopping.add(instance)
                if self.instances[instance].alive:
                    if kill or self.instances[instance].hangs:
                        self.kill(instance, 0, expected=True)
                    else:
                        self.retire(instance)
            case sched.DeclareLost(instance=instance):
                if self.instances[instance].alive:
                    self.kill(instance, 1)
            case other:
                raise AssertionError(f"not for the launcher: {other}")

    # time

    def sleep(self, seconds: float | None = None) -> None:
        """Until the next alarm, or for so long."""
        self.now = max(self.now, min(self._alarms(), default=self.now)) if seconds is None else self.now + seconds
        for front_end in self.front_ends:
            front_end.wake()
        for instance in self.living:
            if not instance.hangs:
                instance.fire_timer()
        if self.alarm is not None and self.alarm <= self.now:
            self.alarm = None
            self.tell(sched.RoundDue(at=self.now))

    def _alarms(self) -> Iterable[float]:
        yield from (each.alarm for each in self.living if each.alarm is not None and not each.hangs)
        for front_end in self.front_ends:
            yield from front_end.deadlines.values()
        if self.alarm is not None:
            yield self.alarm

    @property
    def living(self) -> list[ClusterInstance]:
        return [instance for instance in self.instances.values() if instance.alive]

    @property
    def useful(self) -> list[InstanceId]:
        """Those that work, and of which nobody was told otherwise."""
        return [
            each.id
            for each in self.living
            if not each.hangs and each.id not in self.ended and each.state is InstanceState.RUNNING
        ]

    # what must hold

    def check(self) -> None:
        """After every step."""
        for instance in self.living:
            instance.check_blocks()
        for front_end in self.front_ends:
            front_end.check()
        for client in self.clients:
            index, incarnation = client.front_end
            front_end = self.front_ends[index]
            if not client.over and front_end.incarnation == incarnation and front_end.machine.stream(client.request):
                owners = self._confirmed_owners(client.request)
                assert len(owners) <= 1, f"{client.request} has owners {owners}"

    def _confirmed_owners(self, request: RequestId) -> list[InstanceId]:
        """Instances that would make tokens of it and do not wait for anybody's word."""
        return [
            each.id
            for each in self.living
            if each.id not in self.ended
            and (sequence := each.engine.sequences.get(request)) is not None
            and sequence.state != "detached"
            and request not in each.llumlet.attempts.targets
        ]

    # no more faults

    def settle_introductions(self) -> None:
        for _ in range(4):
            self._quiet_round()

    def settle(self, limit: int = 1500) -> None:
        """No more faults: everything must come to its end, long before an hour is over."""
        started = self.now
        for _ in range(limit):
            if not self.useful:  # all are kept empty, or hang: somebody starts one
                self.start_instance()
            if not self._quiet_round() and not self._what_is_left():
                break
        else:
            raise AssertionError(f"never comes to rest: {self._what_is_left()}")
        assert self.now - started < HOUR, f"took {self.now - started:.0f} s to come to rest"
        self._check_rest()

    def _quiet_round(self) -> bool:
        """Everybody does all that there is to do, and reports. Returns whether there was anything."""
        busy = self._empty_boxes()
        for instance in self.living:
            if instance.hangs:
                continue
            while instance.inbox:
                instance.read_inbox()
                busy = True
            for task in list(instance.pulls):
                instance.pull_ends(task)
                busy = True
            if any(sequence.state != "detached" for sequence in instance.engine.sequences.values()):
                instance.step()
                busy = True
        for instance in self.living:
            self.report(instance.id)
        self._empty_boxes()
        self.sleep(0.02 if busy else 0.3)
        self.check()
        return busy

    def _empty_boxes(self) -> bool:
        busy = False
        while self.news or self.orphanings or self.link or self.fleets or self.launcher_inbox:
            busy = True
            if self.news:
                self.hear(0)
            elif self.orphanings:
                self.orphan(0)
            elif self.fleets:
                self.hear_launcher()
            elif self.launcher_inbox:
                self.obey_scheduler()
            else:
                self.deliver(0)
        for instance in self.instances.values():
            for front_end in self.front_ends:
                while instance.streams.to[front_end.index]:
                    front_end.read(instance.id)
                    busy = True
        return busy

    def _what_is_left(self) -> list[str]:
        """Beside what is wrong at rest: that may still end by itself, in its time."""
        left = [f"{each.id} hangs" for each in self.living if each.hangs and each.has_work]
        left += [f"{each.id} has an alarm" for each in self.living if each.alarm is not None and not each.hangs]
        left += [f"{client.request} is not over" for client in self.clients if not client.over]
        left += [f"front end {each.index} awaits last words" for each in self.front_ends if each.deadlines]
        there = {each.id for each in self.living}
        left += [f"front end {each.index} has not met all" for each in self.front_ends if each.members != there]
        left += [
            f"{report.instance} drains"
            for report in self.scheduler.drains.reports(self.now)
            if report.outcome is sched.DrainOutcome.DRAINING and report.instance not in self.ended
        ]
        if len(self.scheduler.moves):
            left.append("orders are not answered")
        if not self.useful:
            left.append("no instance serves")
        return left

    def _check_rest(self) -> None:
        for client in self.clients:
            if client.done:
                assert len(client.tokens) == client.spec.max_tokens, "ended too early or too late"
        for front_end in self.front_ends:
            machine = front_end.machine
            assert not machine.parked, f"front end {front_end.index} still has parked requests"
            assert not front_end.clients, f"front end {front_end.index} still serves {sorted(front_end.clients)}"
            assert not machine._ownership.streams, f"streams are left: {sorted(machine._ownership.streams)}"
            for view in machine.dispatcher.snapshot(self.now).instances:
                assert not view.waiting, f"front end {front_end.index} charges {view.id} for what it has not"
        for instance in self.living:
            instance.check_rest()
