"""Twenty thousand requests, five thousand instances that come and go: what is left in the machines in the end is what
is there, and what they are meant to remember."""

from __future__ import annotations

import random
from typing import Any

from migration_pair import World
from migration_walk import STORM, Action, open_one, start

from containers import larger_than, sizes
from llumnix.config import MigrationConfig, PolicyConfig, ScalingConfig
from llumnix.control import attempts, drains, gone, told_aborts
from llumnix.control import events as ev
from llumnix.control import messages as say
from llumnix.control import scheduler_events as heard
from llumnix.control.dispatcher import Dispatcher
from llumnix.control.drain import DrainLimits
from llumnix.control.fleet import Fleet
from llumnix.control.llumlet import Llumlet
from llumnix.control.messages import Adopted, Moved, Stayed
from llumnix.control.orders import MoveCause, MoveId, MoveOrder
from llumnix.control.ownership import Ownership
from llumnix.control.scaling import Autoscaler
from llumnix.control.scheduler import GlobalScheduler
from llumnix.policy.dispatch import DispatchRequest
from llumnix.policy.snapshot import InstanceSnapshot, RequestSnapshot
from llumnix.policy.victim import CHEAPEST, choose_victims
from llumnix.types import NORMAL, Epoch, InstanceId, RequestId, RequestState
from move_outcomes import outcome

ALIVE = 8
INSTANCES = 5_000
REQUESTS = 20_000

FEW = 64
"""As much as is there at once, and the fields of what is there."""

BOUNDS = {
    "GoneIds._ids": gone.REMEMBERED,
    "Drains._ended": drains.REMEMBERED_DRAINS,
    "Attempts.ended": attempts.REMEMBERED,
    "ToldAborts._outputs": told_aborts.ABORTS_REMEMBERED,
    "Transcript._older": 1000,
    "Transcript._newer": 1000,
}
"""What remembers, and how much. Everything else holds what is there."""


def report(number: int, seq: int, at: float, **load: object) -> InstanceSnapshot:
    usual = {"id": InstanceId(f"i{number}"), "at": at, "seq": seq, "total_blocks": 1000, "free_blocks": 1000}
    return InstanceSnapshot(**{**usual, **load})  # type: ignore[arg-type]


class Cluster:
    """A scheduler and a front end's dispatcher that hear of `ALIVE` instances, of which the oldest goes each time."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        scaling = Autoscaler(ScalingConfig(min_instances=1, max_instances=2 * ALIVE, scale_window_s=0.0))
        self.scheduler = GlobalScheduler(PolicyConfig(), 10.0, DrainLimits(), scaling)
        self.dispatcher = Dispatcher(PolicyConfig())
        self.at = self.seq = 0
        self.sent: dict[str, int] = {}

    def tell(self, event: heard.SchedulerEvent) -> None:
        for command in self.scheduler.handle(event):
            if isinstance(command, heard.MoveRequest) and self.rng.random() < 0.8:  # else the answer is lost
                named = RequestId("r") if self.rng.random() < 0.7 else None
                ok = named is not None and self.rng.random() < 0.5
                ended = outcome(command.source, command.order.target, named, None if ok else "refused")
                self.scheduler.handle(heard.MigrationEnded(at=self.at, outcome=ended))

    def load(self, number: int) -> None:
        self.seq += 1
        free, running = self.rng.choice(((5, 40), (900, 5), (400, 20)))
        known = {
            "free_blocks": free,
            "running": running,
            "smallest_running_blocks": 5,
            "waiting": self.rng.choice((0, 9)),
        }
        seen = self.sent.get(f"i{number}", 0)
        said = report(
            number, self.seq, self.at, short_blocks=self.rng.choice((0, 0, 7)), dispatches_seen=(seen,), **known
        )
        self.tell(heard.LoadReported(at=self.at, snapshot=said))
        self.dispatcher.on_report(said)

    def dispatch(self, number: int) -> None:
        chosen = self.dispatcher.dispatch(DispatchRequest(RequestId(f"r{number}"), 100, NORMAL))
        if chosen is not None:
            self.sent[chosen.instance] = self.sent.get(chosen.instance, 0) + 1
            if self.rng.random() < 0.1:
                self.dispatcher.forget(chosen.request, chosen.instance)
                self.sent[chosen.instance] -= 1

    def turn(self, number: int) -> None:
        """Instance `number` comes, and the one `ALIVE` before it goes."""
        self.at += 1
        leaver = number - ALIVE
        self.tell(heard.FleetReported(at=self.at, fleet=Fleet(serving=ALIVE, starting=number % 2)))
        self.tell(heard.InstanceStarted(at=self.at, instance=InstanceId(f"i{number}")))
        for each in range(max(0, leaver), number + 1):
            self.load(each)
        if number % 3 == 0:
            self.tell(heard.DrainRequested(at=self.at, instance=InstanceId(f"i{leaver}")))
        self.tell(heard.RoundDue(at=self.at))
        if leaver >= 0:
            self.tell(heard.InstanceLost(at=self.at, instance=InstanceId(f"i{leaver}"), why="it ended"))
            self.dispatcher.on_removed(InstanceId(f"i{leaver}"))
            self.sent.pop(f"i{leaver}", None)
            self.load(leaver)  # its last words come late


def test_scheduler_and_dispatcher_hold_who_is_there() -> None:
    cluster = Cluster(seed=1)
    for number in range(INSTANCES):
        cluster.turn(number)
        for request in range(4 * number, 4 * number + 4):
            cluster.dispatch(request)
    assert larger_than(FEW, BOUNDS, cluster.scheduler, cluster.dispatcher) == {}
    assert sizes(cluster.scheduler)["GoneIds._ids"] == gone.REMEMBERED, "it did not run long enough"


def candidate(number: int) -> RequestSnapshot:
    return RequestSnapshot(
        id=RequestId(f"r{number}"),
        state=RequestState.RUNNING,
        priority=NORMAL,
        arrival_s=0.0,
        output_tokens=3,
        held_blocks=4,
        needed_blocks=4,
        length_blocks=4,
    )


def test_llumlet_holds_the_migrations_that_are_under_way() -> None:
    """Requests leave, stay, come and are refused, one after the other; some of what is awaited never comes."""
    rng = random.Random(2)
    llumlet = Llumlet(
        InstanceId("here"), MigrationConfig(), lambda each, query: choose_victims(CHEAPEST, each, query), 0.0
    )
    for number in range(REQUESTS):
        at, there, name = 0.01 * number, InstanceId(f"i{number // 10}"), RequestId(f"r{number}")
        order = MoveOrder(
            move_id=MoveId(f"m{number}"), target=there, cause=MoveCause.BALANCE, reason="balance", request=name
        )
        llumlet.handle(ev.MoveOrdered(at, order, (candidate(number),)))
        epoch = llumlet.attempts.epoch
        fate = rng.choice(("refused", "gone", "lost", "silent"))
        if fate == "refused":
            refused = say.Refused(request=name, epoch=epoch, sender=there, reason="full")
            llumlet.handle(ev.Received(at, refused))
        elif fate == "gone":
            llumlet.handle(ev.Gone(at, name, "finished"))
        elif fate == "lost":
            llumlet.handle(ev.PeerLost(at, there))
        comer = RequestId(f"comer-{number}")
        epoch = Epoch(epoch + 1)
        asked = say.Prepare(request=comer, epoch=epoch, sender=there, blocks=4)
        llumlet.handle(ev.Received(at, asked))
        if comer in llumlet.attempts.targets:
            if rng.random() < 0.5:
                llumlet.handle(ev.ReserveFailed(at, comer, epoch, "full"))
            else:
                llumlet.handle(ev.Reserved(at, comer, epoch, 0))
                llumlet.handle(ev.Received(at, say.Cancel(request=comer, epoch=epoch, sender=there, reason="it ended")))
        llumlet.handle(ev.TimerFired(at))
    assert larger_than(FEW, BOUNDS, llumlet) == {}
    assert sizes(llumlet)["Attempts.ended"] == attempts.REMEMBERED, "it did not run long enough"


def test_ownership_holds_the_streams_that_run() -> None:
    """Each moves a few times between instances of which one is lost now and then; then it ends or is aborted."""
    rng = random.Random(3)
    owners = Ownership()
    for number in range(REQUESTS):
        oldest = number // 4
        places = [InstanceId(f"i{oldest + place}") for place in range(3)]
        name = RequestId(f"r{number}")
        stream = owners.opened(name, places[0])
        for epoch in range(1, rng.randint(1, 4)):
            target = rng.choice([place for place in places if place != stream.owner])
            header: dict[str, Any] = {"request": name, "epoch": Epoch(epoch)}
            if rng.random() < 0.8:
                owners.notice_arrived(
                    Adopted(**header, sender=target, source=stream.owner, output_tokens=stream.delivered_tokens)
                )
                owners.outputs_arrived(name, target, ("held",), 1)
            if rng.random() < 0.8:
                owners.notice_arrived(Moved(**header, sender=stream.owner, outcome=outcome(stream.owner, target)))
            else:
                why = outcome(stream.owner, target, why_not="refused")
                owners.notice_arrived(Stayed(**header, sender=stream.owner, outcome=why))
            if name not in owners.streams:
                break
        if number % 4 == 3:
            owners.instance_gone(places[0])
        if name in owners.streams:
            owners.finished(name) if rng.random() < 0.8 else owners.aborted(name)
    assert larger_than(FEW, BOUNDS, owners) == {}
    assert sizes(owners)["GoneIds._ids"] == gone.REMEMBERED, "it did not run long enough"


def few_at_once(world: World, rng: random.Random) -> None:
    if world.trusted and sum(not client.done and not client.aborted for client in world.clients[-40:]) < 6:
        world.open(rng.choice(world.trusted), rng.choice((1, 3, 8)), rng.choice((1, 4)), rng.choice((0, 0, 2)))


def test_whole_protocol_leaves_nothing_behind_while_messages_are_lost_and_instances_die() -> None:
    rng = random.Random(4)
    world = World(total_blocks=60)
    weights: dict[Action, float] = {
        few_at_once: 8.0,
        start: 3.0,
        **{act: weight for act, weight in STORM.items() if act not in (open_one, start)},
    }
    for action in rng.choices(list(weights), list(weights.values()), k=30_000):
        action(world, rng)
    world.settle()
    assert len(world.clients) > 100, "hardly anything happened"
    llumlets = [instance.llumlet for instance in world.living]
    assert (
        larger_than(
            FEW, BOUNDS | {"Attempts.ended": 300, "GoneIds._ids": len(world.instances)}, world.ownership, *llumlets
        )
        == {}
    )
    assert world.ownership.streams == {}
