"""Where a front end's requests go, at first and after their instance was lost; and those that wait for a place."""

from __future__ import annotations

from typing import NamedTuple

from llumnix.config import PolicyConfig
from llumnix.control.dispatcher import NONE_AVOIDED, Dispatch, Dispatcher
from llumnix.control.front_end_events import Arrived, AskPrefixes, FrontEndCommand, GiveUp, Park, ReplayAt, SendTo
from llumnix.control.messages import NOBODY
from llumnix.control.onward import Onward
from llumnix.control.ownership import Ownership, Replay
from llumnix.control.stream import Stream
from llumnix.policy.dispatch import DispatchRequest, Judged
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, RequestId

MOST_FRUITLESS_REPLAYS = 3
"""A request that was lost so often without making a token may be what ends instances."""


_AGAIN = "~"
"""Between the first id of a request and the number of its replay."""


def first_id(request: RequestId) -> RequestId:
    """The id that it arrived with, whatever it goes by after replays."""
    first, again, number = request.rpartition(_AGAIN)
    return RequestId(first) if again and number.isdecimal() else request


class Taker(NamedTuple):
    """Where a request would be sent."""

    instance: InstanceSnapshot
    """With what is on its way there."""
    cached_tokens: int
    """Of the request's prompt."""


class Placing:
    """Opens a stream for each request that has a place. Without `ledger` what was sent is not charged until it is
    reported."""

    def __init__(self, config: PolicyConfig, dispatcher: Dispatcher, ownership: Ownership, ledger: bool) -> None:
        self.dispatcher = dispatcher
        self.onward = Onward(config, dispatcher)
        self._ownership = ownership
        self._ledger = ledger
        self._waiting: dict[RequestId, Replay] = {}
        """A request that was never sent waits with a stream that has no owner."""
        self._lacks: dict[InstanceId, frozenset[int]] = {}

    @property
    def parked(self) -> int:
        return len(self._waiting)

    # instances

    def reported(self, snapshot: InstanceSnapshot) -> list[FrontEndCommand]:
        commands: list[FrontEndCommand] = []
        if self.dispatcher.on_report(snapshot):
            commands.append(AskPrefixes(snapshot.id))
        self.onward.reported(snapshot)
        return commands + self._place_waiting() if self._waiting else commands

    def equipped(self, instance: InstanceId, lacks: tuple[int, ...]) -> list[FrontEndCommand]:
        if self.dispatcher.is_removed(instance):
            return []
        self._lacks[instance] = frozenset(lacks)
        return self._place_waiting()

    def close(self, instance: InstanceId) -> None:
        self.dispatcher.on_removed(instance)
        self.onward.gone(instance)
        self._lacks.pop(instance, None)

    # requests

    def arrived(self, asked: Arrived) -> SendTo | Park | GiveUp:
        decision = self._choose(asked, asked.request, asked.prompt_tokens, asked.only_on)
        if decision is not None:
            return self._send(asked, decision)
        if asked.may_wait:
            return self._park(Replay(Stream(asked.request, NOBODY, live=None, asked=asked), "no instance can take it"))
        if (adapter := self._adapter_of_nobody(asked)) is not None:
            return GiveUp(asked.request, f"No instance can load the adapter {adapter!r} now.")
        return GiveUp(asked.request, "No instance can take the request now.")

    def taker(self, asked: Arrived) -> Taker | None:
        """Nothing is booked. None: no instance could ever have it."""
        avoid = self._avoided(asked, asked.only_on)
        reason = self.dispatcher.weigh(_to_place(asked, asked.request, asked.prompt_tokens), avoid)
        if reason is None:
            return None
        best = reason.candidates[0]
        return Taker(self.dispatcher.view(best.instance), best.cached_tokens)

    def best_places(self, stream: Stream) -> list[Judged]:
        """Where a request that has an owner had best move: of the instances where it would be placed now, those with
        room, and of them those first that have most of its prompt cached, which need not be copied. One that waits goes
        to none for tokens, as long as there is another."""
        if stream.asked is None:
            return []
        tokens = stream.asked.prompt_tokens + stream.delivered_tokens
        avoid = self._without_adapter(stream.asked) | {stream.owner}
        if stream.delivered_tokens:
            avoid |= self.dispatcher.for_prompts()  # from where it would move once more
        reason = self.dispatcher.weigh(_to_place(stream.asked, stream.request, tokens), avoid)
        found = () if reason is None else reason.candidates
        if found and not found[0].for_tokens and not stream.delivered_tokens:
            found = tuple(each for each in found if not each.for_tokens)
        able = [each for each in found if each.has_room] or list(found)
        able.sort(key=lambda each: -each.cached_tokens)
        return able

    def has_another_place(self, stream: Stream) -> bool:
        """Whether it could begin anew now on another instance than its owner."""
        if stream.asked is None:
            return False
        tokens = stream.asked.prompt_tokens + stream.delivered_tokens
        return self.dispatcher.has_place(tokens, self._without_adapter(stream.asked) | {stream.owner})

    def unsent(self, request: RequestId) -> None:
        """It was sent just now, and did not get out."""
        self.dispatcher.forget(request, self._ownership.never_sent(request).owner)

    def begin_anew(self, lost: Replay) -> SendTo | ReplayAt | Park | GiveUp:
        """Where it left off; it waits while there is no room anywhere."""
        old, asked = lost.stream, lost.stream.asked
        assert asked is not None
        self.onward.close(old.request)
        if problem := why_not_replayable(old):
            return GiveUp(old.request, f"{lost.why}; the stream cannot be continued exactly: {problem}")
        never_sent = old.owner == NOBODY
        new_id = asked.request if never_sent else RequestId(f"{asked.request}{_AGAIN}{old.replays + 1}")
        tokens = asked.prompt_tokens + old.delivered_tokens
        decision = self._choose(asked, new_id, tokens, asked.only_on if never_sent else None)
        if decision is None:
            if (adapter := self._adapter_of_nobody(asked)) is not None:
                return GiveUp(old.request, f"{lost.why}; no instance can load its adapter {adapter!r}")
            if self.dispatcher.is_too_long(tokens):
                return GiveUp(old.request, f"{lost.why}; no instance ever had memory for its {tokens} tokens so far")
            return self._park(lost)
        if never_sent:
            return self._send(asked, decision)
        new = self._ownership.opened(new_id, decision.instance)
        new.asked, new.replays = asked, old.replays + 1
        new.delivered_tokens = new.began_with = old.delivered_tokens
        # Until its next token: it may be what ends instances.
        new.fruitless_replays = _fruitless(old) + (not lost.asked_for)
        delivered_tokens, reason = new.began_with, decision.reason
        return ReplayAt(old.request, new_id, decision.instance, delivered_tokens, lost.why, reason, lost.asked_for)

    def wait_no_more(self, request: RequestId) -> None:
        self._waiting.pop(request, None)

    def _place_waiting(self) -> list[FrontEndCommand]:
        """There may be room again."""
        waiting, self._waiting = self._waiting, {}
        again = [self.begin_anew(each) for each in waiting.values()]
        return [command for command in again if not isinstance(command, Park)]

    def _send(self, asked: Arrived, decision: Dispatch) -> SendTo:
        self._ownership.opened(asked.request, decision.instance).asked = asked
        onward = self.onward.order(asked, decision.instance, self._without_adapter(asked))
        return SendTo(asked.request, decision.instance, decision.reason, onward)

    def _park(self, waiting: Replay) -> Park:
        self._waiting[waiting.stream.request] = waiting
        return Park(waiting.stream.request, waiting.why)

    def _choose(
        self, asked: Arrived, name: RequestId, tokens: int, only_on: tuple[InstanceId, ...] | None
    ) -> Dispatch | None:
        decision = self.dispatcher.dispatch(_to_place(asked, name, tokens), self._avoided(asked, only_on))
        if decision is not None and not self._ledger:
            self.dispatcher.forget(name, decision.instance)
        return decision

    def _avoided(self, asked: Arrived, only_on: tuple[InstanceId, ...] | None) -> frozenset[InstanceId]:
        others = NONE_AVOIDED if only_on is None else self.dispatcher.all_but(only_on)
        return others | self._without_adapter(asked)

    def _without_adapter(self, asked: Arrived) -> frozenset[InstanceId]:
        """The instances that lack the adapter that it needs."""
        adapter = asked.adapter
        if adapter is None:
            return NONE_AVOIDED
        return frozenset(instance for instance, lacks in self._lacks.items() if adapter.id in lacks)

    def _adapter_of_nobody(self, asked: Arrived) -> str | None:
        """The name of the adapter that it needs, if there are instances and none has that."""
        adapter, known = asked.adapter, self.dispatcher.all_but(())
        if adapter is None or not known:
            return None
        return adapter.name if all(adapter.id in self._lacks.get(instance, ()) for instance in known) else None


def _to_place(asked: Arrived, name: RequestId, tokens: int) -> DispatchRequest:
    return DispatchRequest(name, tokens, asked.priority, asked.chunks)


def why_not_replayable(stream: Stream) -> str:
    """Why it cannot be continued exactly by computing its tokens anew, or an empty string."""
    fruitless = _fruitless(stream)
    if fruitless >= MOST_FRUITLESS_REPLAYS:
        return f"it was lost {fruitless} times in a row, perhaps because it is what ends instances"
    asked = stream.asked
    if asked is None or not (stream.delivered_tokens or asked.more_comes):
        return ""
    return asked.not_exact


def _fruitless(stream: Stream) -> int:
    """Replays since the last token reached the client."""
    return 0 if stream.delivered_tokens > stream.began_with else stream.fruitless_replays
