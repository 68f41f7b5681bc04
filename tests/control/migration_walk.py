"""A random walk through the world of `migration_pair`: many faults in short time, the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable

from link_faults import double, lose
from migration_pair import Instance, World

from llumnix.control.events import Accepting, Draining
from llumnix.types import InstanceId

Action = Callable[[World, random.Random], None]


def open_one(world: World, rng: random.Random) -> None:
    if world.trusted and sum(not client.done and not client.aborted for client in world.clients) < 6:
        prompt = rng.choice((1, 3, 8, 20))
        world.open(rng.choice(world.trusted), prompt, rng.choice((1, 4, 12)), rng.choice((0, 0, 2)))


def move(world: World, rng: random.Random) -> None:
    if len(world.living) > 1:
        source, target = rng.sample([each.id for each in world.living], 2)
        requests = list(world.instances[source].engine.sequences)
        named = rng.choice(requests) if requests and rng.random() < 0.7 else None
        world.move(source, target, named, rng.choice((1, 2)))


def deliver(world: World, rng: random.Random) -> None:
    if world.link:
        # Mostly in order, or nothing would ever get through.
        world.deliver(0 if rng.random() < 0.6 else rng.randrange(len(world.link)))


def read_stream(world: World, rng: random.Random) -> None:
    readable = [each for each in world.instances.values() if each.stream]
    if readable:
        world.read_stream(rng.choice(readable).id)


def read_inbox(world: World, rng: random.Random) -> None:
    readable = [each for each in world.living if each.inbox]
    if readable:
        rng.choice(readable).read_inbox()


def step(world: World, rng: random.Random) -> None:
    if world.living:
        rng.choice(world.living).step()


def end_pull(world: World, rng: random.Random) -> None:
    pulling = [each for each in world.living if each.pulls]
    if pulling:
        instance = rng.choice(pulling)
        instance.pull_ends(rng.choice(instance.pulls))


def sleep(world: World, rng: random.Random) -> None:
    world.sleep(rng.choice((None, 0.5)))


def preempt(world: World, rng: random.Random) -> None:
    running = [
        (instance, request)
        for instance in world.living
        for request, sequence in instance.engine.sequences.items()
        if sequence.state == "running"
    ]
    if running:
        instance, request = rng.choice(running)
        instance.preempt(request)


def fail(world: World, rng: random.Random) -> None:
    rng.choice(list(world.instances.values())).next_fails = True


def abort(world: World, rng: random.Random) -> None:
    clients = [client for client in world.clients if not client.done and not client.aborted]
    if clients:
        world.abort(rng.choice(clients))


def kill(world: World, rng: random.Random) -> None:
    # One instance must stay to which nobody was told to say good-bye, or no request could be replayed.
    victims = expendable(world)
    if victims:
        world.kill(rng.choice(victims), unread=rng.choice((0, 1, 2, 100)), expected=rng.random() < 0.3)


def expendable(world: World) -> list[InstanceId]:
    return [each.id for each in world.living if any(other != each.id for other in world.trusted)]


def retire(world: World, rng: random.Random) -> None:
    victims = [each for each in expendable(world) if each in world.undoubted]
    if victims:
        world.retire(rng.choice(victims))


def retire_empty(world: World, rng: random.Random) -> None:
    """As after a drain: what it had, and what was sent to it, is done or has moved away."""
    victims = [each for each in expendable(world) if each in world.undoubted and is_empty(world.instances[each])]
    if victims:
        world.retire(rng.choice(victims))


def is_empty(instance: Instance) -> bool:
    attempts = instance.llumlet.attempts
    return not (instance.engine.sequences or instance.inbox or attempts.sources or attempts.targets)


def introduce(world: World, rng: random.Random) -> None:
    if world.reports:
        world.introduce(rng.randrange(len(world.reports)))


def declare_lost(world: World, rng: random.Random) -> None:
    if len(world.trusted) > 1:
        world.declare_lost(rng.choice(world.trusted))


def start(world: World, rng: random.Random) -> None:
    if len(world.trusted) < 3:
        world.start()


def hear(world: World, rng: random.Random) -> None:
    if world.news:
        world.hear(rng.randrange(len(world.news)))


def drain(world: World, rng: random.Random) -> None:
    if world.living:
        rng.choice(world.living).handle(rng.choice((Draining, Accepting))(world.now))


WEIGHTS: dict[Action, float] = {
    open_one: 2,
    move: 4,
    deliver: 20,
    double: 1.5,
    lose: 0.7,
    read_stream: 10,
    read_inbox: 6,
    step: 10,
    end_pull: 6,
    sleep: 0.7,
    preempt: 0.3,
    fail: 0.2,
    abort: 0.15,
    kill: 0.06,
    declare_lost: 0.03,
    retire: 0.04,
    retire_empty: 0.1,
    start: 0.2,
    introduce: 0.3,
    hear: 0.5,
    drain: 0.2,
}
CALM = {action: weight for action, weight in WEIGHTS.items() if action not in (kill, retire, declare_lost)}
"""Nobody dies, and who ends is empty."""
CONFUSED = {**CALM, move: 6, lose: 1.5, double: 6, sleep: 2.5, read_stream: 4, step: 7, abort: 0.05}
"""Control messages come twice or never, alarms fire, and the front end reads late."""
LATE = {**CALM, read_stream: 4, step: 7, hear: 6, start: 1, introduce: 0.3, retire_empty: 3, drain: 0, sleep: 0}
"""The front end reads tokens late, though within its deadline, so that news of ends overtake them, and it knows new
instances late."""
STORM = {**CONFUSED, kill: 0.1, declare_lost: 0.1, start: 0.3, hear: 0.3}
"""All of that, and instances die, stall and start."""


def walk(seed: int, steps: int = 250, weights: dict[Action, float] = WEIGHTS) -> World:
    """Raises AssertionError or IllegalEvent as soon as something is wrong; the world is at rest in the end."""
    rng = random.Random(seed)
    world = World(total_blocks=rng.choice((24, 60)))
    actions, chances = list(weights), list(weights.values())
    for action in rng.choices(actions, chances, k=steps):
        action(world, rng)
        world.check()
    world.settle()
    return world
