"""A random walk through the world of `cluster_world`: the same one for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable

from cluster_instance import ClusterInstance
from cluster_world import Cluster
from link_faults import double, lose

from llumnix.types import InstanceId, InstanceState, Role

Action = Callable[[Cluster, random.Random], None]


def open_one(world: Cluster, rng: random.Random) -> None:
    if sum(not client.over for client in world.clients) < 8:
        front_end = rng.choice(world.front_ends)
        prompt, tokens = rng.choice((1, 3, 8, 20)), rng.choice((1, 4, 12))
        front_end.open(prompt, tokens, seeded=rng.random() < 0.2, may_wait=rng.random() < 0.3)


def move(world: Cluster, rng: random.Random) -> None:
    """By hand, or by a scheduler that knows more than the front ends do."""
    giving = [each for each in working(world) if each.engine.sequences]
    if giving and len(world.living) > 1:
        source = rng.choice(giving)
        target = rng.choice([each.id for each in world.living if each is not source])
        world.move(source.id, target, rng.choice(list(source.engine.sequences)))


def report(world: Cluster, rng: random.Random) -> None:
    if world.living:
        world.report(rng.choice(world.living).id)


def deliver(world: Cluster, rng: random.Random) -> None:
    for _ in range(min(3, len(world.link))):
        # Mostly in order, or nothing would ever get through.
        world.deliver(0 if rng.random() < 0.7 else rng.randrange(len(world.link)))


def read_stream(world: Cluster, rng: random.Random) -> None:
    readable = [(each, index) for each in world.instances.values() for index, s in enumerate(each.streams.to) if s]
    if readable:
        instance, index = rng.choice(readable)
        world.front_ends[index].read(instance.id)


def working(world: Cluster) -> list[ClusterInstance]:
    return [each for each in world.living if not each.hangs]


def read_inbox(world: Cluster, rng: random.Random) -> None:
    readable = [each for each in working(world) if each.inbox]
    if readable:
        rng.choice(readable).read_inbox()


def step(world: Cluster, rng: random.Random) -> None:
    if working(world):
        rng.choice(working(world)).step()


def end_pull(world: Cluster, rng: random.Random) -> None:
    pulling = [each for each in working(world) if each.pulls]
    if pulling:
        instance = rng.choice(pulling)
        instance.pull_ends(rng.choice(instance.pulls))


def sleep(world: Cluster, rng: random.Random) -> None:
    world.sleep(rng.choice((None, 0.02, 0.1)))


def long_sleep(world: Cluster, rng: random.Random) -> None:
    world.sleep(rng.choice((0.5, 1.5)))


def hear(world: Cluster, rng: random.Random) -> None:
    if world.news:
        world.hear(rng.randrange(len(world.news)))


def hear_launcher(world: Cluster, rng: random.Random) -> None:
    if world.fleets:
        world.hear_launcher()


def obey_scheduler(world: Cluster, rng: random.Random) -> None:
    if world.launcher_inbox:
        world.obey_scheduler()


def orphan(world: Cluster, rng: random.Random) -> None:
    if world.orphanings:
        world.orphan(rng.randrange(len(world.orphanings)))


def start(world: Cluster, rng: random.Random) -> None:
    if len(world.living) < 4:
        world.start_instance()


def fail(world: Cluster, rng: random.Random) -> None:
    if world.living:
        rng.choice(world.living).next_fails = True


def abort(world: Cluster, rng: random.Random) -> None:
    clients = [client for client in world.clients if not client.over]
    if clients:
        client = rng.choice(clients)
        world.front_ends[client.front_end[0]].abort(client)


def expendable(world: Cluster) -> list[InstanceId]:
    return world.useful if len(world.useful) > 1 else []


def kill(world: Cluster, rng: random.Random) -> None:
    if expendable(world):
        world.kill(rng.choice(expendable(world)), unread=rng.choice((0, 1, 2, 100)))


def hang(world: Cluster, rng: random.Random) -> None:
    if expendable(world):
        world.instances[rng.choice(expendable(world))].hang()


def drain(world: Cluster, rng: random.Random) -> None:
    if expendable(world):
        world.drain(rng.choice(expendable(world)), rng.random() < 0.4, rng.choice((None, 0.0, 0.5)))


def undrain(world: Cluster, rng: random.Random) -> None:
    draining = [each.id for each in world.living if each.state is InstanceState.DRAINING]
    if draining:
        world.undrain(rng.choice(draining))


def give_role(world: Cluster, rng: random.Random) -> None:
    if world.living:
        world.give_role(rng.choice(world.living).id, rng.choice(list(Role)))


def sigterm(world: Cluster, rng: random.Random) -> None:
    if expendable(world):
        world.instances[rng.choice(expendable(world))].asked_by_its_process()


def replace_front_end(world: Cluster, rng: random.Random) -> None:
    world.replace_front_end(rng.randrange(world.size))


def replace_scheduler(world: Cluster, rng: random.Random) -> None:
    world.start_scheduler()


def preempt(world: Cluster, rng: random.Random) -> None:
    running = [
        (instance, request)
        for instance in working(world)
        for request, sequence in instance.engine.sequences.items()
        if sequence.state == "running"
    ]
    if running:
        instance, request = rng.choice(running)
        instance.preempt(request)


FAULTS: dict[Action, float] = {
    double: 1.0,
    lose: 0.7,
    long_sleep: 0.15,
    preempt: 0.2,
    fail: 0.2,
    abort: 0.15,
    kill: 0.06,
    hang: 0.03,
    drain: 0.12,
    undrain: 0.1,
    sigterm: 0.04,
    replace_front_end: 0.04,
    replace_scheduler: 0.05,
}
WEIGHTS: dict[Action, float] = {
    open_one: 2.5,
    move: 1.5,
    report: 5,
    deliver: 16,
    read_stream: 10,
    read_inbox: 6,
    step: 10,
    end_pull: 6,
    sleep: 2,
    hear: 0.6,
    hear_launcher: 0.6,
    obey_scheduler: 0.6,
    orphan: 0.5,
    start: 0.15,
    **FAULTS,
}


CONFUSED = {
    **WEIGHTS,
    move: 4,
    lose: 3,
    double: 4,
    long_sleep: 0.8,
    read_stream: 4,
    kill: 0.02,
    hang: 0.01,
    sigterm: 0.02,
}
"""Mail comes twice or never, alarms fire, and front ends read late."""
STRANGERS = {**WEIGHTS, move: 8, start: 2, report: 1, deliver: 3, lose: 3, drain: 0.5, abort: 0.05}
"""Instances come and go, requests move to them at once, and front ends hear of them late."""


IN_ROLES = {**WEIGHTS, give_role: 1.0, report: 10}
"""Instances change what they are for, and requests go where they are to make their tokens."""


def walk(seed: int, steps: int = 400, weights: dict[Action, float] = WEIGHTS) -> Cluster:
    """Raises AssertionError or IllegalEvent as soon as something is wrong; the world is at rest in the end."""
    rng = random.Random(seed)
    world = Cluster(total_blocks=rng.choice((24, 60)), front_ends=rng.choice((1, 2)), scaling=rng.random() < 0.5)
    actions, chances = list(weights), list(weights.values())
    for action in rng.choices(actions, chances, k=steps):
        action(world, rng)
        world.check()
    world.settle()
    return world
