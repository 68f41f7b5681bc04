"""What every body of a llumlet must do: the same situations for a tiny, a simulated and vLLM's engine.

Each has a file of tests of its own that brings a pair of instances. In the place of their llumlets there are
commanders: they give the orders of the test, and remember what they are told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from llumnix.control import commands as do
from llumnix.control import events as told
from llumnix.control import messages as say
from llumnix.types import Epoch, InstanceId, RequestId

EPOCH, NEXT_EPOCH = Epoch(1), Epoch(2)
Reply = Callable[[Any], do.AnyCommand | None]


@dataclass
class Commander:
    """As much of a llumlet as its loop and its driver ask for."""

    heard: list[told.AnyEvent] = field(default_factory=list)
    orders: list[do.AnyCommand] = field(default_factory=list)
    """What it commands at the next event."""
    reply: Reply = lambda _: None
    """What it commands when a message comes."""
    incoming = outgoing = 0

    def handle(self, event: told.AnyEvent) -> list[do.AnyCommand]:
        self.heard.append(event)
        orders, self.orders = self.orders, []
        reply = self.reply(event.message) if isinstance(event, told.Received) else None
        return orders if reply is None else [*orders, reply]

    def is_settled(self, request: RequestId) -> bool:
        return True


class End(Protocol):
    """One instance."""

    id: InstanceId
    commander: Commander

    @property
    def free_blocks(self) -> int: ...
    def tick(self) -> None:
        """Lets its commander hear `TimerFired`."""

    def admit(self, tokens: int = 30) -> RequestId:
        """A request that is to make so many, has made the first, and has two full blocks. A step is in flight."""

    def queue(self) -> RequestId:
        """A request that waits and has no blocks; no step begins before `step`."""

    def step(self) -> None:
        """Each request that runs has said one more token at least."""

    def abort(self, request: RequestId) -> None:
        """Its client goes away. What is in flight ends."""

    def preempt(self, request: RequestId) -> None: ...
    def tokens(self, request: RequestId) -> int:
        """Told to its client from here."""

    def tokens_before(self, notice: type[say.AnyNotice]) -> int | None:
        """Of its only request, when that notice went out; None if it did not."""


class BodyPair(Protocol):
    source: End
    target: End

    def deliver(self) -> None:
        """What was sent arrives, at whomever it was sent to."""

    def end_copies(self) -> None:
        """Copies that run come to their end."""

    def lose_source(self) -> None:
        """The target hears that the source is gone."""

    def pass_time(self, seconds: float) -> None: ...
    @property
    def wrong(self) -> list[str]:
        """Tokens that came from a wrong KV cache, in words."""


def order(end: End, *commands: do.AnyCommand) -> None:
    end.commander.orders = list(commands)
    end.tick()


def heard(end: End, *kinds: type[told.AnyEvent]) -> list[Any]:
    return [event for event in end.commander.heard if isinstance(event, kinds)]


def send(pair: BodyPair, message: say.AnyMessage, reply: Reply, to: End | None = None) -> None:
    """From the source; whoever gets it is ordered so at once."""
    receiver = pair.target if to is None else to
    receiver.commander.reply = reply
    order(pair.source, do.Send(receiver.id, message))
    pair.deliver()


def reserve(pair: BodyPair, request: RequestId, blocks: int, to: End | None = None, epoch: Epoch = EPOCH) -> None:
    asked = say.Prepare(request=request, epoch=epoch, sender=pair.source.id, blocks=blocks)
    send(pair, asked, lambda arrived: do.Reserve(request, epoch, blocks, arrived), to=to)


def pull(pair: BodyPair, request: RequestId, blocks: int, stage: int = 1) -> None:
    """The first blocks, which are pinned before."""
    copy = say.Copy(request=request, epoch=EPOCH, sender=pair.source.id, stage=stage, first_block=0, blocks=blocks)
    order(pair.source, do.PinBlocks(request, EPOCH, 0, blocks))
    send(pair, copy, lambda arrived: do.Pull(request, EPOCH, stage, arrived))


def steps(ends: Iterable[End], count: int = 3) -> None:
    for _ in range(count):
        for end in ends:
            end.step()


class BodyContract:
    """A subclass has a fixture `pair`."""

    # -- at the source

    def test_progress_of_a_watched_request_is_told_by_the_next_step(self, pair: BodyPair) -> None:
        request = pair.source.admit()
        order(pair.source, do.WatchProgress(request))
        pair.source.step()
        progress = heard(pair.source, told.Progress)
        assert progress
        assert {event.request for event in progress} == {request}
        assert 2 <= progress[0].settled_blocks <= progress[0].total_blocks
        assert progress[0].decoding
        order(pair.source, do.Unwatch(request))
        count = len(heard(pair.source, told.Progress))
        steps([pair.source])
        assert len(heard(pair.source, told.Progress)) == count

    def test_preemption_of_a_watched_request_is_told(self, pair: BodyPair) -> None:
        request = pair.source.admit()
        order(pair.source, do.WatchProgress(request))
        pair.source.preempt(request)
        pair.source.step()
        assert [event.request for event in heard(pair.source, told.Preempted)] == [request]

    def test_detached_request_has_said_all_that_it_made_keeps_its_blocks_and_makes_no_more(
        self, pair: BodyPair
    ) -> None:
        request = pair.source.admit()
        order(pair.source, do.Detach(request))
        assert not heard(pair.source, told.Detached), "a step is in flight"
        pair.source.step()
        (detached,) = heard(pair.source, told.Detached)
        free, said = pair.source.free_blocks, pair.source.tokens(request)
        assert (detached.request, detached.output_tokens) == (request, said)
        assert detached.total_blocks > 2
        steps([pair.source])
        assert (pair.source.free_blocks, pair.source.tokens(request)) == (free, said)
        order(pair.source, do.Release(request))
        assert pair.source.free_blocks == free + detached.total_blocks

    def test_queued_request_is_detached_at_once_and_holds_nothing(self, pair: BodyPair) -> None:
        request = pair.source.queue()
        free = pair.source.free_blocks
        order(pair.source, do.Detach(request))
        (detached,) = heard(pair.source, told.Detached)
        assert (detached.request, detached.total_blocks, detached.output_tokens) == (request, 0, 0)
        order(pair.source, do.Release(request))
        assert pair.source.free_blocks == free
        steps([pair.source])
        assert pair.source.tokens(request) == 0

    def test_order_to_leave_that_is_taken_back_in_time_is_forgotten(self, pair: BodyPair) -> None:
        request = pair.source.admit()
        order(pair.source, do.Detach(request))
        order(pair.source, do.Reattach(request))
        said = pair.source.tokens(request)
        steps([pair.source])
        assert not heard(pair.source, told.Detached)
        assert pair.source.tokens(request) >= said + 3
        assert pair.wrong == []

    def test_request_that_had_left_comes_back_and_goes_on(self, pair: BodyPair) -> None:
        request = pair.source.admit()
        order(pair.source, do.Detach(request))
        pair.source.step()
        said = pair.source.tokens(request)
        order(pair.source, do.Reattach(request))
        steps([pair.source])
        assert len(heard(pair.source, told.Detached)) == 1
        assert pair.source.tokens(request) >= said + 2
        assert pair.wrong == []

    def test_pin_outlives_its_request(self, pair: BodyPair) -> None:
        free = pair.source.free_blocks
        request = pair.source.admit()
        order(pair.source, do.PinBlocks(request, EPOCH, 0, 2))
        pair.source.abort(request)
        assert [event.request for event in heard(pair.source, told.Gone)] == [request]
        assert pair.source.free_blocks == free - 2
        order(pair.source, do.UnpinBlocks(request, EPOCH))
        assert pair.source.free_blocks == free

    def test_pins_of_an_attempt_that_is_over_cost_nothing_while_the_request_lives(self, pair: BodyPair) -> None:
        free = pair.source.free_blocks
        request = pair.source.admit()
        order(pair.source, do.PinBlocks(request, EPOCH, 0, 2))
        order(pair.source, do.UnpinBlocks(request, EPOCH), do.PinBlocks(request, NEXT_EPOCH, 0, 1))
        pair.source.abort(request)
        assert pair.source.free_blocks == free - 1
        order(pair.source, do.UnpinBlocks(request, NEXT_EPOCH))
        assert pair.source.free_blocks == free

    def test_request_that_makes_its_last_token_while_it_is_to_leave_has_ended(self, pair: BodyPair) -> None:
        request = pair.source.admit(tokens=2)
        order(pair.source, do.Detach(request))
        steps([pair.source])
        assert pair.source.tokens(request) == 2
        assert [type(event) for event in heard(pair.source, told.Gone, told.Detached)] == [told.Gone]

    def test_notice_goes_out_after_every_token_and_a_release_without_a_word(self, pair: BodyPair) -> None:
        free = pair.source.free_blocks
        request = pair.source.admit()
        order(pair.source, do.Detach(request))
        pair.source.step()
        (detached,) = heard(pair.source, told.Detached)
        notice = say.Fenced(request=request, epoch=EPOCH, sender=pair.source.id)
        order(pair.source, do.Notify(request, notice), do.Release(request))
        steps([pair.source])
        assert pair.source.tokens_before(say.Fenced) == pair.source.tokens(request) == detached.output_tokens
        assert not heard(pair.source, told.Gone)
        assert pair.source.free_blocks == free

    def test_request_that_runs_can_be_released(self, pair: BodyPair) -> None:
        free = pair.source.free_blocks
        request = pair.source.admit()
        order(pair.source, do.Release(request))
        pair.source.step()
        said = pair.source.tokens(request)
        steps([pair.source])
        assert pair.source.tokens(request) == said
        assert not heard(pair.source, told.Gone)
        assert pair.source.free_blocks == free

    # -- at the target

    def test_reservation_takes_room_until_it_is_dropped(self, pair: BodyPair) -> None:
        request, free = pair.source.admit(), pair.target.free_blocks
        reserve(pair, request, 3)
        (reserved,) = heard(pair.target, told.Reserved)
        assert (reserved.request, reserved.epoch) == (request, EPOCH)
        assert pair.target.free_blocks <= free - 3
        order(pair.target, do.Drop(request, EPOCH))
        assert pair.target.free_blocks == free

    def test_what_does_not_fit_is_refused_and_takes_nothing(self, pair: BodyPair) -> None:
        request, free = pair.source.admit(), pair.target.free_blocks
        reserve(pair, request, 100_000)
        (failed,) = heard(pair.target, told.Reserved, told.ReserveFailed)
        assert isinstance(failed, told.ReserveFailed)
        assert failed.reason
        assert pair.target.free_blocks == free

    def test_request_that_is_there_is_not_taken_again(self, pair: BodyPair) -> None:
        request = pair.source.admit()
        free = pair.source.free_blocks
        reserve(pair, request, 2, to=pair.source)
        assert [type(event) for event in heard(pair.source, told.Reserved, told.ReserveFailed)] == [told.ReserveFailed]
        assert pair.source.free_blocks == free

    def test_blocks_under_a_running_pull_stay_after_a_drop_until_it_has_ended(self, pair: BodyPair) -> None:
        request, free = pair.source.admit(), pair.target.free_blocks
        reserve(pair, request, 2)
        pull(pair, request, 2)
        order(pair.target, do.Drop(request, EPOCH))
        assert pair.target.free_blocks <= free - 2, "a late write may still reach them"
        pair.end_copies()
        assert pair.target.free_blocks == free
        assert not heard(pair.target, told.Pulled, told.PullFailed)

    def test_attempt_after_a_dropped_one_is_another(self, pair: BodyPair) -> None:
        request, free = pair.source.admit(), pair.target.free_blocks
        reserve(pair, request, 2)
        order(pair.target, do.Drop(request, EPOCH))
        reserve(pair, request, 2, epoch=NEXT_EPOCH)
        order(pair.target, do.Drop(request, EPOCH))
        assert [event.epoch for event in heard(pair.target, told.Reserved)] == [EPOCH, NEXT_EPOCH]
        assert pair.target.free_blocks <= free - 2, "the old one's end does not concern it"
        order(pair.target, do.Drop(request, NEXT_EPOCH))
        assert pair.target.free_blocks == free

    def test_pull_from_one_that_is_gone_fails(self, pair: BodyPair) -> None:
        request = pair.source.admit()
        reserve(pair, request, 2)
        copy = say.Copy(request=request, epoch=EPOCH, sender=pair.source.id, stage=1, first_block=0, blocks=2)
        pair.lose_source()
        order(pair.target, do.Pull(request, EPOCH, 1, copy))
        pair.end_copies()
        (failed,) = heard(pair.target, told.Pulled, told.PullFailed)
        assert isinstance(failed, told.PullFailed)
        assert failed.reason

    # -- both

    def test_request_moves_while_it_decodes_and_goes_on_with_the_right_tokens(self, pair: BodyPair) -> None:
        source, target = pair.source, pair.target
        free = source.free_blocks, target.free_blocks
        request = source.admit()
        reserve(pair, request, 8)  # more than it will have
        pull(pair, request, 2)
        steps([source], 2)
        pair.end_copies()
        assert [event.stage for event in heard(target, told.Pulled)] == [1]
        order(source, do.Detach(request))
        source.step()
        (detached,) = heard(source, told.Detached)
        self._commit(pair, request, 2, detached.total_blocks - 2)
        pair.end_copies()
        assert [event.stage for event in heard(target, told.Pulled)] == [1, 2]
        order(target, do.Install(request, EPOCH, self.commit))
        target.step()
        (installed,) = heard(target, told.Installed)
        assert (installed.epoch, installed.output_tokens) == (EPOCH, detached.output_tokens)
        order(source, do.Release(request), do.UnpinBlocks(request, EPOCH))
        steps([source, target])
        assert target.tokens(request) >= 3
        assert pair.wrong == []
        target.abort(request)
        assert (source.free_blocks, target.free_blocks) == free

    def test_queued_request_moves_without_blocks_and_runs_there(self, pair: BodyPair) -> None:
        request = pair.source.queue()
        order(pair.source, do.Detach(request))
        reserve(pair, request, 0)
        assert len(heard(pair.target, told.Reserved)) == 1
        self._commit(pair, request, 0, 0)
        pair.end_copies()
        order(pair.target, do.Install(request, EPOCH, self.commit))
        pair.target.step()
        (installed,) = heard(pair.target, told.Installed)
        assert installed.output_tokens == 0
        order(pair.source, do.Release(request))
        steps([pair.source, pair.target], 6)
        assert (pair.source.tokens(request), pair.target.tokens(request) > 0) == (0, True)
        assert pair.wrong == []

    commit: say.Commit
    """As it arrived."""

    def _commit(self, pair: BodyPair, request: RequestId, first_block: int, blocks: int) -> None:
        """Sends it, and has the last blocks pulled, if there are some."""

        def arrived(message: say.Commit) -> do.AnyCommand | None:
            self.commit = message
            return do.Pull(request, EPOCH, 2, message) if blocks else None

        commit = say.Commit(
            request=request, epoch=EPOCH, sender=pair.source.id, stage=2, first_block=first_block, blocks=blocks
        )
        send(pair, commit, arrived)

    def test_alarm_rings_once_at_the_last_time_that_was_asked_for(self, pair: BodyPair) -> None:
        pair.source.tick()
        now = pair.source.commander.heard[-1].at
        order(pair.source, do.WakeAt(now + 5.0))
        order(pair.source, do.WakeAt(now + 2.0))
        before = len(heard(pair.source, told.TimerFired))
        pair.pass_time(1.0)
        assert len(heard(pair.source, told.TimerFired)) == before
        pair.pass_time(1.5)
        assert len(heard(pair.source, told.TimerFired)) == before + 1
        pair.pass_time(10.0)
        assert len(heard(pair.source, told.TimerFired)) == before + 1
