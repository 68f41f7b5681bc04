"""A front end's mind: where each request goes, whose its stream is, and how it goes on when its instance does not.

A machine without I/O, driven live by `engine/vllm` and in virtual time by `sim/front_end.py`. A driver tells it what
happens (`front_end_events.py`), one event at a time and each instance's token stream in order, and carries out the
commands in order before the next event. It may deliver on its own what the owner of a stream says, and nothing else:

    if stream.live == instance:     # never ask for this
        stream.delivered_tokens += tokens

What the driver must see to: names of requests are never used twice; an instance is told to be `Departed` once nothing
of it will be told any more, whatever it may still say; a `Doubted` may come at any time, more than once or never.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import assert_never

from llumnix.config import PolicyConfig
from llumnix.control.dispatcher import Dispatcher
from llumnix.control.front_end_events import (
    Aborted,
    Arrived,
    AskPrefixes,
    Broken,
    Closed,
    Departed,
    Doubted,
    DriveOut,
    DroveOut,
    Equipped,
    Finished,
    FrontEndCommand,
    FrontEndEvent,
    GiveUp,
    InStreams,
    Noticed,
    OfInstances,
    OfRequests,
    Outputs,
    PrefixesTold,
    Reported,
    TurnedAway,
    Unsent,
)
from llumnix.control.ownership import Order, Ownership, Replay
from llumnix.control.placing import Placing, Taker, why_not_replayable
from llumnix.control.stream import Stream
from llumnix.types import InstanceId, RequestId

MOST_LOOKED_AT = 64
"""Requests of an instance that drains, for each of which a place is weighed: some milliseconds in all."""

RecordFrontEnd = Callable[[FrontEndEvent, list[FrontEndCommand], dict[RequestId, int]], None]
"""record(event, commands, delivered): `delivered` tokens, before the event, of the streams that it concerns."""


class FrontEndMachine:
    """`index`: this front end's in `InstanceSnapshot.dispatches_seen`. Without `ledger` what was sent is not charged
    until it is reported, as in the paper's artifact."""

    def __init__(self, config: PolicyConfig, index: int = 0, ledger: bool = True) -> None:
        self.record: RecordFrontEnd | None = None
        self._ownership = Ownership()
        self._placing = Placing(config, Dispatcher(config, index), self._ownership, ledger)

    def handle(self, event: FrontEndEvent) -> list[FrontEndCommand]:
        """Never raises for what the world does: what comes late, twice or about nobody changes nothing."""
        delivered = None
        if self.record is not None:
            delivered = {stream.request: stream.delivered_tokens for stream in self.concerned(event)}
        self._placing.onward.expire(event.at_s)
        if isinstance(event, Reported):  # most are
            commands = self._placing.reported(event.snapshot)
        elif isinstance(event, OfRequests):
            commands = self._of_requests(event)
        elif isinstance(event, OfInstances):
            commands = self._of_instances(event)
        else:
            commands = self._in_streams(event)
        self._placing.onward.happened(event)
        if self.record is not None and delivered is not None:
            self.record(event, commands, delivered)
        return commands

    def stream(self, request: RequestId) -> Stream | None:
        """None if the request is parked or over, or goes on under another id."""
        return self._ownership.streams.get(request)

    @property
    def prefix_chunk_tokens(self) -> int:
        """Size of the chunks that `Arrived.chunks` names; 0: nobody knows or asks where prefixes are cached."""
        return self._placing.dispatcher.prefix_chunk_tokens

    @property
    def dispatcher(self) -> Dispatcher:
        """To look at."""
        return self._placing.dispatcher

    def taker(self, asked: Arrived) -> Taker | None:
        """Where it would be sent if it arrived now; nothing is booked. None: no instance could ever have it."""
        return self._placing.taker(asked)

    def best_places(self, request: RequestId, most: int) -> tuple[InstanceId, ...]:
        """Where it had best move, the best first; empty if nowhere, or if nobody has it."""
        stream = self.stream(request)
        return () if stream is None else tuple(each.instance for each in self._placing.best_places(stream)[:most])

    def where_cached(self, instance: InstanceId) -> dict[RequestId, InstanceId]:
        """Of its requests there, those of whose prompt others have some in their caches, and where each had best move.
        The first `MOST_LOOKED_AT` whose prompts have names are looked at."""
        there = (each for each in self._ownership.streams.values() if each.owner == instance)
        named = (each for each in there if each.asked is not None and each.asked.chunks)
        best = {each.request: self._placing.best_places(each)[:1] for each in islice(named, MOST_LOOKED_AT)}
        return {request: one.instance for request, found in best.items() for one in found if one.cached_tokens}

    @property
    def parked(self) -> int:
        """Requests that wait for an instance."""
        return self._placing.parked

    @property
    def dropped(self) -> int:
        """Outputs so far that came from an instance that was not to send them."""
        return self._ownership.dropped

    def concerned(self, event: FrontEndEvent) -> list[Stream]:
        """Those whose `delivered_tokens` the answer to this event may depend on."""
        if isinstance(event, Departed | DriveOut):
            return [stream for stream in self._ownership.streams.values() if stream.owner == event.instance]
        if isinstance(event, Noticed):
            stream = self.stream(event.notice.request)
        elif isinstance(event, Outputs | TurnedAway | Broken):
            stream = self.stream(event.request)
        else:
            stream = None
        return [] if stream is None else [stream]

    def counted(self, delivered: dict[RequestId, int]) -> None:
        """So many tokens of these streams the client has by now (where nobody counts on the hot path)."""
        for request, tokens in delivered.items():
            if (stream := self.stream(request)) is not None:
                stream.delivered_tokens = tokens

    # routing

    def _of_instances(self, event: OfInstances) -> list[FrontEndCommand]:
        match event:
            case PrefixesTold():
                missed_none = self._placing.dispatcher.on_prefixes(event.instance, event.news)
                return [] if missed_none else [AskPrefixes(event.instance)]
            case Equipped():
                return self._placing.equipped(event.instance, event.lacks)
            case Closed():
                self._placing.close(event.instance)
                return []
            case Departed():
                self._placing.close(event.instance)
                return self._obey(self._ownership.instance_gone(event.instance, event.complete))
            case Doubted():
                return self._obey(self._ownership.doubted(event.doubt))
            case DriveOut():
                return self._drive_out(event)
            case _:
                assert_never(event)

    def _of_requests(self, event: OfRequests) -> list[FrontEndCommand]:
        match event:
            case Arrived():
                return [self._placing.arrived(event)]
            case Finished():
                return self._obey(self._ownership.finished(event.request))
            case Unsent():
                self._placing.unsent(event.request)
                return []
            case Aborted():
                self._placing.wait_no_more(event.request)
                return self._obey(self._ownership.aborted(event.request))
            case Broken():
                if self.stream(event.request) is None:
                    return []
                return [*self._obey(self._ownership.aborted(event.request)), GiveUp(event.request, event.why)]
            case _:
                assert_never(event)

    def _in_streams(self, event: InStreams) -> list[FrontEndCommand]:
        match event:
            case Outputs(_, instance, request, tokens, outputs, last):
                return self._obey(self._ownership.outputs_arrived(request, instance, outputs, tokens, last))
            case Noticed():
                return self._obey(self._ownership.notice_arrived(event.notice))
            case TurnedAway():
                self._placing.close(event.instance)  # nor will it take another one
                return self._obey(self._ownership.turned_away(event.request, event.instance))
            case _:
                assert_never(event)

    def _obey(self, orders: list[Order]) -> list[FrontEndCommand]:
        return [self._placing.begin_anew(order) if isinstance(order, Replay) else order for order in orders]

    def _drive_out(self, event: DriveOut) -> list[FrontEndCommand]:
        leave = [
            stream
            for stream in self.concerned(event)
            if not why_not_replayable(stream) and self._placing.has_another_place(stream)
        ]
        orders = [order for stream in leave for order in self._ownership.driven_out(stream.request, event.why)]
        return [*self._obey(orders), DroveOut(event.instance, len(leave))]
