"""Whole migrations, source and target and front end together: one named misfortune each."""

# Ids are plain strings here, and of what class a command is, the test itself shows.
# mypy: disable-error-code="arg-type, index"
from __future__ import annotations

from collections.abc import Callable

import pytest
from migration_pair import Client, World

from llumnix.control.events import Detached
from llumnix.control.messages import Cancel, Commit, Committed, Copied, Doubt, Message, Prepared, Refused, Verdict
from llumnix.control.orders import MoveOutcome, StayCause


def run(world: World, until: Callable[[], bool] = lambda: False, losing: tuple[type[Message], ...] = ()) -> None:
    """Steps the world in order until `until` or until it rests; drops messages of the kinds in `losing`."""
    for _ in range(2000):
        if until():
            return
        world.link = [entry for entry in world.link if not isinstance(entry[1], losing)]
        if world.link:
            world.deliver(0)
        elif not world.settle_once():
            return
    raise AssertionError("never comes to rest")


def decoding(world: World, max_tokens: int = 12) -> Client:
    """A request on a whose client has read three tokens."""
    client = world.open("a", prompt_tokens=8, max_tokens=max_tokens)
    run(world, lambda: len(client.tokens) >= 3)
    return client


def answer(world: World, instance: str = "a") -> MoveOutcome:
    (only,) = world.instances[instance].answers
    return only.outcome


def test_request_moves_while_it_decodes() -> None:
    world = World(2)
    client = decoding(world)
    world.move("a", "b", client.request)
    run(world)
    world.check_rest()
    assert answer(world).ok
    assert answer(world).figures.stages >= 2
    assert client.replays == []


def test_request_moves_there_and_back_and_there() -> None:
    world = World(2)
    client = decoding(world, max_tokens=60)
    for source, target in (("a", "b"), ("b", "a"), ("a", "b")):
        world.move(source, target, client.request)
        moving = world.instances[target].llumlet.is_moving
        run(
            world,
            lambda target=target, moving=moving: (  # type: ignore[misc]
                client.request in world.instances[target].engine.sequences and not moving(client.request)
            ),
        )
    run(world)
    world.check_rest()
    assert [each.outcome.ok for name in "ab" for each in world.instances[name].answers] == [True, True, True]


def test_requests_cross() -> None:
    world = World(2)
    one, two = world.open("a", 8, 30), world.open("b", 8, 30)
    run(world, lambda: len(one.tokens) > 2 and len(two.tokens) > 2)
    world.move("a", "b", one.request)
    world.move("b", "a", two.request)
    run(world)
    world.check_rest()
    assert answer(world, "a").ok
    assert answer(world, "b").ok


def test_queued_request_moves_without_blocks() -> None:
    world = World(2, total_blocks=20)
    world.open("a", 30, 2)
    waits = world.open("a", 20, 2)
    world.instances["a"].read_inbox()
    world.instances["a"].read_inbox()
    world.instances["a"].step()
    assert world.instances["a"].engine.sequences[waits.request].state == "waiting"
    world.move("a", "b", waits.request)
    run(world)
    world.check_rest()
    assert answer(world).ok
    assert answer(world).figures.bytes_copied == 0


@pytest.mark.parametrize("lost", [Prepared, Copied, Commit])
def test_lost_message_before_the_target_has_it(lost: type[Message]) -> None:
    world = World(2, total_blocks=150)
    client = decoding(world, max_tokens=200)
    world.move("a", "b", client.request)
    run(world, lambda: bool(world.instances["a"].answers), losing=(lost,))
    run(world)
    world.check_rest()
    assert not answer(world).ok
    assert client.replays == []


def test_acknowledgement_of_the_commit_is_lost() -> None:
    """The front end has read `Adopted`: the target keeps it."""
    world = World(2, total_blocks=150)
    client = decoding(world, max_tokens=200)
    world.move("a", "b", client.request)
    run(world, lambda: bool(world.instances["a"].answers), losing=(Committed,))
    assert answer(world).ok
    run(world)
    world.check_rest()


def test_front_end_judges_before_it_reads_that_the_target_has_it() -> None:
    """The source takes it back; the target's copy is fenced, and frees itself because it asks."""
    world = World(2)
    client = decoding(world, max_tokens=40)
    world.move("a", "b", client.request)
    a, b = world.instances["a"], world.instances["b"]
    while not any(isinstance(message, Commit) for _, message in world.link):
        if world.link:
            world.deliver(0)
        for each in (a, b):
            for task in list(each.pulls):
                each.pull_ends(task)
            each.step()
        while a.stream:
            world.read_stream("a")
    world.deliver(0)
    b.pull_ends(b.pulls[0])
    assert client.request in b.engine.sequences
    world.link.clear()  # the Committed
    world.sleep()
    assert [type(message) for _, message in world.link] == [Doubt]
    world.deliver(0)
    world.link = [entry for entry in world.link if entry[0] == "a"]  # the target's verdict is lost
    world.deliver(0)
    assert world.confirmed_owners(client.request) == ["a"]
    run(world)
    world.check_rest()
    assert answer(world).why_not == "the target did not confirm, and the front end let it stay"
    assert client.replays == []


def test_front_end_cannot_be_asked_for_a_while() -> None:
    """The client goes on all the same: the target has said that it has the request. Its source is told later."""
    world = World(2, total_blocks=150)
    client = decoding(world, max_tokens=200)
    world.move("a", "b", client.request)
    start = world.now
    run(world, lambda: world.now > start + 10, losing=(Committed, Doubt))
    assert not world.instances["a"].answers
    assert len(client.tokens) == 200
    run(world)
    world.check_rest()
    assert answer(world).why_not == "the request has ended or goes on elsewhere"


def test_verdicts_are_lost_for_a_while() -> None:
    world = World(2, total_blocks=150)
    client = decoding(world, max_tokens=200)
    world.move("a", "b", client.request)
    start = world.now
    run(world, lambda: world.now > start + 10, losing=(Committed, Verdict))
    assert len(client.tokens) == 200
    run(world)
    world.check_rest()
    assert answer(world).why_not == "the request has ended or goes on elsewhere"


def test_source_dies_after_the_target_has_it() -> None:
    """The target goes on: nothing is replayed."""
    world = World(2)
    client = decoding(world, max_tokens=40)
    world.move("a", "b", client.request)
    run(world, lambda: client.request in world.instances["b"].engine.sequences)
    while world.instances["b"].stream:
        world.read_stream("b")
    world.kill("a", unread=100)
    run(world)
    world.check_rest()
    assert client.replays == []


def test_source_dies_with_tokens_that_nobody_read() -> None:
    world = World(2)
    client = decoding(world, max_tokens=40)
    world.move("a", "b", client.request)
    run(world, lambda: any(isinstance(message, Commit) for _, message in world.link))
    world.instances["a"].stream.clear()
    world.kill("a")
    run(world)
    world.check_rest()
    assert len(client.replays) == 1


@pytest.mark.parametrize("victim", ["a", "b"])
def test_either_end_dies_during_the_copy(victim: str) -> None:
    world = World(3)
    client = decoding(world, max_tokens=40)
    world.move("a", "b", client.request)
    run(world, lambda: bool(world.instances["b"].pulls))
    world.kill(victim)
    run(world)
    world.check_rest()
    assert len(client.replays) == (victim == "a")


def test_client_leaves_while_the_request_changes_hands() -> None:
    world = World(2)
    client = decoding(world, max_tokens=40)
    world.move("a", "b", client.request)
    run(world, lambda: any(isinstance(message, Committed) for _, message in world.link))
    world.abort(client)
    run(world)
    world.check_rest()
    assert not client.done


def test_target_has_no_room() -> None:
    world = World(2)
    client = decoding(world)
    world.instances["b"].next_fails = True
    world.move("a", "b", client.request)
    run(world)
    world.check_rest()
    assert answer(world).why_not == "refused: no room"


def test_target_says_that_it_lacks_but_a_place_for_the_adapter() -> None:
    world = World(2)
    client = decoding(world)
    world.instances["b"].next_fails = world.instances["b"].has_no_adapter_place = True
    world.move("a", "b", client.request)
    run(world)
    world.check_rest()
    assert answer(world).stayed is StayCause.NO_ADAPTER


def test_cancel_and_refusal_are_lost() -> None:
    """The reservation ends by its deadline."""
    world = World(2)
    client = decoding(world, max_tokens=6)
    world.move("a", "b", client.request)
    run(world, losing=(Cancel, Refused, Copied))
    world.check_rest()
    assert not answer(world).ok


@pytest.mark.parametrize("asked_early", [True, False])
def test_request_that_decodes_elsewhere_leaves_with_its_first_token(asked_early: bool) -> None:
    """Asked when it decodes already, it goes as any other: in rounds, while it makes tokens."""
    world = World(2, total_blocks=100)
    client = world.open("a", prompt_tokens=40, max_tokens=60)
    source = world.instances["a"]
    source.read_inbox()
    source.step()
    if not asked_early:
        run(world, lambda: len(client.tokens) >= 5)
    world.move("a", "b", to_decode=True)
    source.step()
    run(world, lambda: bool(source.answers))
    assert answer(world).ok
    heard = [entry.event for entry in source.llumlet.transcript.of(client.request)]
    (made_here,) = [event.output_tokens for event in heard if isinstance(event, Detached)]
    assert (made_here <= 2) == asked_early, "one more is under way"
    run(world)
    world.check_rest()


def test_one_that_was_to_go_with_its_first_token_goes_without_a_round_however_late_its_target_answers() -> None:
    world = World(2)
    client = world.open("a", prompt_tokens=16, max_tokens=40)
    source = world.instances["a"]
    source.read_inbox()
    source.step()
    assert client.tokens == []
    world.move("a", "b", to_decode=True)
    for _ in range(8):
        source.step()
    run(world, lambda: bool(source.answers))
    assert answer(world).ok
    assert answer(world).figures.stages == 1
    run(world)
    world.check_rest()
