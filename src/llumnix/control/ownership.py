"""Who owns a token stream: the front end's side of a migration.

The front end holds one `Stream` per engine request. Every instance that has or had the request sends its tokens
and notices in one ordered stream of its own; only the owner's reach the client. An instance may have a request more
than once, so its part of the stream falls into tenures: the first owner's has epoch 0, every other begins with
`Adopted` and has its epoch.

Ownership passes on when the owner's `Moved` is read, thus after its last token. What the new owner sent before that
was held and is handed out then. When the two ends of a migration cannot agree, the front end decides (`Doubt`,
`Verdict`). When the owner dies, a target that adopted and has exactly the tokens that the client has goes on; else the
request is replayed under a new id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from llumnix.control.gone import Gone
from llumnix.control.messages import FRONT_END, NOBODY, Adopted, AnyNotice, Doubt, Fenced, Moved, Stayed, Verdict
from llumnix.types import Epoch, InstanceId, RequestId

_FIRST = Epoch(0)

ABORTS_REMEMBERED = 4096

OUTPUTS_PER_ABORT = 16
"""An engine that still makes tokens of a request which it was told to abort is told again after so many."""


class Deliver(msgspec.Struct, frozen=True):
    """Hand these outputs to the client's stream, in order."""

    request: RequestId
    outputs: tuple[object, ...]


class Tell(msgspec.Struct, frozen=True):
    """Send the verdict to the llumlet of an instance, over the control channel. May get lost: it is asked for again."""

    to: InstanceId
    verdict: Verdict


class Abort(msgspec.Struct, frozen=True):
    """Tell the engine of an instance to abort the request, on the channel by which requests are sent."""

    to: InstanceId
    request: RequestId


class Replay(msgspec.Struct, frozen=True):
    """No instance goes on with this id, and it is forgotten: start the request under a NEW id, with the prompt and the
    delivered tokens as its prompt. Unless an output that was delivered just before was its last."""

    request: RequestId
    delivered_tokens: int
    why: str
    asked_for: bool = False
    """Nothing broke: its instance is to be empty."""


Order = Deliver | Tell | Abort | Replay


class Held(msgspec.Struct, frozen=True):
    """Outputs that came before it was clear whether their sender owns the request."""

    outputs: tuple[object, ...]
    tokens: int


@dataclass(slots=True)
class Tenure:
    """The request at an instance that adopted it and does not own it, yet or any more."""

    instance: InstanceId
    adopted_tokens: int
    """Output tokens that it came with."""
    waiting: list[Held | Moved | Stayed] = field(default_factory=list)


@dataclass(slots=True)
class Stream:
    """One engine request. The hot path is

    if stream.live == instance:
        stream.delivered_tokens += tokens  # and deliver
    else:
        orders = ownership.outputs_arrived(request, instance, outputs, tokens)
    """

    request: RequestId
    owner: InstanceId
    live: InstanceId | None
    """Whose outputs go straight to the client. None until the new owner's tenure has begun in its stream: what it may
    still send of an older one is not for the client."""
    delivered_tokens: int = 0
    epoch: Epoch = _FIRST
    """The owner's tenure."""
    decided: Epoch = _FIRST
    """Attempts up to this one are over: whoever has the request from one of them and is not the owner is fenced."""
    promised: tuple[Epoch, InstanceId] | None = None
    """A verdict for a target, whose source has not confirmed it in its stream yet."""
    tenures: dict[InstanceId, Epoch] = field(default_factory=dict)
    """The epoch that each instance's stream is at."""
    contenders: dict[Epoch, Tenure] = field(default_factory=dict)
    """By attempt, those that adopted and are not decided."""


class Ownership:
    """All streams of one front end. Every method returns what the front end has to do, in order.

    A request id that is not in `streams` has ended, was aborted, or goes on under a new id: whoever turns out to have
    it still is told to free it.
    """

    def __init__(self) -> None:
        self.streams: dict[RequestId, Stream] = {}
        self.lost = Gone()
        self.dropped = 0
        """Outputs that came from an instance that was not to send them: fenced, lost, or of a request that is over."""
        self._aborts: dict[tuple[InstanceId, RequestId], int] = {}  # lately sent, and outputs that came since

    def opened(self, request: RequestId, owner: InstanceId) -> Stream:
        """The request was sent to `owner`. Its id must never have been used."""
        stream = Stream(request, owner, live=owner, tenures={owner: _FIRST})
        self.streams[request] = stream
        return stream

    def outputs_arrived(
        self, request: RequestId, instance: InstanceId, outputs: Sequence[object], tokens: int
    ) -> list[Order]:
        """Outputs (`tokens` new tokens in all) of an instance that is not `stream.live`, or of an unknown request."""
        stream = self.streams.get(request)
        if stream is not None:
            if stream.live == instance:
                stream.delivered_tokens += tokens
                return [Deliver(request, tuple(outputs))]
            tenure = _contender(stream, instance)
            if tenure is not None:
                tenure.waiting.append(Held(tuple(outputs), tokens))
                return []
        self.dropped += len(outputs)
        return self._abort_unless_told(instance, request) if stream is None else []

    def notice_arrived(self, notice: AnyNotice) -> list[Order]:
        """A notice, at its place among the outputs of `notice.sender`."""
        stream = self.streams.get(notice.request)
        if stream is None:
            return self._free_unknown(notice)
        if isinstance(notice, Adopted):
            return self._adopted(stream, notice)
        if stream.live == notice.sender:
            return self._apply(stream, notice)
        tenure = _contender(stream, notice.sender)
        if tenure is not None:
            if isinstance(notice, Fenced):
                del stream.contenders[notice.epoch]
            else:
                tenure.waiting.append(notice)
        return []

    def doubted(self, doubt: Doubt) -> list[Order]:
        """A llumlet asks who owns the request after attempt `doubt.epoch`. No order means that this is not decided yet;
        it will ask again."""
        stream = self.streams.get(doubt.request)
        if stream is None or doubt.sender in self.lost:
            return [_tell(doubt.sender, doubt.request, doubt.epoch, NOBODY)]
        if doubt.epoch <= stream.decided:
            return [_tell(doubt.sender, doubt.request, doubt.epoch, stream.owner)]
        if stream.promised is not None and stream.promised[0] == doubt.epoch:
            return [_tell(doubt.sender, doubt.request, doubt.epoch, stream.promised[1])]
        if doubt.sender == doubt.target or doubt.sender != stream.owner or stream.promised is not None:
            # A target waits for its source's notice. It may be the owner, too: of an older tenure, from which the
            # request has moved on and come back while the notices of that are still on their way.
            return []
        both = (doubt.sender, doubt.target)
        if doubt.epoch in stream.contenders:
            # The source's last tokens may still be on their way: the target becomes the owner at its `Moved`.
            stream.promised = (doubt.epoch, doubt.target)
            return [_tell(to, doubt.request, doubt.epoch, doubt.target) for to in both]
        self._decide(stream, doubt.epoch)
        return [_tell(to, doubt.request, doubt.epoch, doubt.sender) for to in both]

    def instance_gone(self, instance: InstanceId, complete: bool = False) -> list[Order]:
        """The instance will never speak again. Streams are taken in the order in which they were opened.

        `complete`: all that it ever said was read. So what is held of it still counts: it may be that the notice which
        makes it the owner is unread.
        """
        if instance in self.lost:
            return []
        self.lost.add(instance)
        orders: list[Order] = []
        for stream in list(self.streams.values()):
            for epoch in [epoch for epoch, tenure in stream.contenders.items() if tenure.instance == instance]:
                if not complete:
                    del stream.contenders[epoch]
            if stream.owner == instance:
                orders += self._succeed(stream)
        return orders

    def driven_out(self, request: RequestId, why: str) -> list[Order]:
        """Its owner is to be empty now: the request is freed everywhere and goes on elsewhere."""
        return self._replay(self.streams[request], why, asked_for=True)

    def turned_away(self, request: RequestId, instance: InstanceId) -> list[Order]:
        """The instance ends and did not take the request, or gave it up: it goes on elsewhere."""
        stream = self.streams.get(request)
        if stream is None or stream.live != instance:
            return []
        return self._replay(stream, f"{instance} was stopped", asked_for=True)

    def finished(self, request: RequestId) -> list[Order]:
        """The owner's last output was delivered."""
        stream = self.streams.pop(request, None)  # None: its owner is gone, and it was among what was held of it
        return [] if stream is None else self._abort(request, _others(stream))

    def aborted(self, request: RequestId) -> list[Order]:
        """The client went away, or a stop string ended the request: free it everywhere."""
        stream = self.streams.pop(request)
        return self._abort(request, [stream.owner, *_others(stream)])

    def never_sent(self, request: RequestId) -> None:
        """It was opened, and then could not be sent: nobody has it."""
        del self.streams[request]

    # notices

    def _adopted(self, stream: Stream, notice: Adopted) -> list[Order]:
        if notice.sender in self.lost:
            return []
        stream.tenures[notice.sender] = notice.epoch
        if notice.sender == stream.owner and notice.epoch == stream.epoch:
            return self._begin_tenure(stream, Tenure(notice.sender, notice.output_tokens))
        if notice.epoch <= stream.decided:
            return [_tell(notice.sender, stream.request, notice.epoch, stream.owner)]
        stream.contenders[notice.epoch] = Tenure(notice.sender, notice.output_tokens)
        return []

    def _apply(self, stream: Stream, notice: Moved | Stayed | Fenced) -> list[Order]:
        """A notice of the owner."""
        if isinstance(notice, Moved):
            return self._pass_on(stream, notice.target, notice.epoch)
        if isinstance(notice, Stayed):
            fenced = stream.contenders.get(notice.epoch)
            self._decide(stream, notice.epoch)
            return [] if fenced is None else [_tell(fenced.instance, stream.request, notice.epoch, stream.owner)]
        return self._replay(stream, f"its owner {stream.owner} freed it")

    def _pass_on(self, stream: Stream, owner: InstanceId, epoch: Epoch) -> list[Order]:
        """Ownership passes to the target of attempt `epoch`."""
        tenure = stream.contenders.pop(epoch, None)
        if owner in self.lost and tenure is None:
            return self._replay(stream, f"{owner}, where it had moved, was lost")
        stream.owner, stream.epoch, stream.live = owner, epoch, None
        stream.promised = None
        self._decide(stream, epoch)
        confirmed = _tell(owner, stream.request, epoch, owner)
        return [confirmed] if tenure is None else [confirmed, *self._begin_tenure(stream, tenure)]

    def _begin_tenure(self, stream: Stream, tenure: Tenure) -> list[Order]:
        if tenure.adopted_tokens != stream.delivered_tokens:
            why = f"{tenure.instance} has {tenure.adopted_tokens} tokens of it, the client {stream.delivered_tokens}"
            return self._replay(stream, why)
        if stream.tenures[stream.owner] == stream.epoch:
            stream.live = stream.owner
        orders: list[Order] = []
        for item in tenure.waiting:
            if isinstance(item, Held):
                stream.delivered_tokens += item.tokens
                orders.append(Deliver(stream.request, item.outputs))
            else:
                orders += self._apply(stream, item)
        if stream.owner == tenure.instance and stream.request in self.streams and tenure.instance in self.lost:
            # Unless what was held is all of it, which shows when it is delivered.
            orders += self._replay(stream, f"{tenure.instance}, where it had moved, was lost")
        return orders

    def _decide(self, stream: Stream, epoch: Epoch) -> None:
        stream.decided = max(stream.decided, epoch)
        for old in [old for old in stream.contenders if old <= stream.decided]:
            waiting = stream.contenders.pop(old).waiting
            self.dropped += sum(len(item.outputs) for item in waiting if isinstance(item, Held))

    # loss

    def _succeed(self, stream: Stream) -> list[Order]:
        """The owner is lost: its next attempt that got through goes on, if no token is missing."""
        epoch = min(stream.contenders, default=None)
        if epoch is None:
            return self._replay(stream, f"{stream.owner} was lost")
        tenure = stream.contenders[epoch]
        if tenure.adopted_tokens != stream.delivered_tokens:
            why = f"{stream.owner} was lost with tokens that {tenure.instance} has and the client has not"
            return self._replay(stream, why)
        return self._pass_on(stream, tenure.instance, epoch)

    def _replay(self, stream: Stream, why: str, asked_for: bool = False) -> list[Order]:
        del self.streams[stream.request]
        aborts = self._abort(stream.request, [stream.owner, *_others(stream)])
        return [*aborts, Replay(stream.request, stream.delivered_tokens, why, asked_for)]

    # requests that are over

    def _abort(self, request: RequestId, holders: list[InstanceId]) -> list[Order]:
        return [order for holder in holders for order in self._abort_at(holder, request)]

    def _abort_at(self, instance: InstanceId, request: RequestId) -> list[Order]:
        if instance in self.lost:
            return []
        self._aborts[instance, request] = 0
        if len(self._aborts) > ABORTS_REMEMBERED:
            del self._aborts[next(iter(self._aborts))]
        return [Abort(instance, request)]

    def _abort_unless_told(self, instance: InstanceId, request: RequestId) -> list[Order]:
        """An instance still has a request that is over: its front end died, or an abort did not find it."""
        outputs = self._aborts.get((instance, request), OUTPUTS_PER_ABORT) + 1
        if outputs > OUTPUTS_PER_ABORT:
            return self._abort_at(instance, request)
        self._aborts[instance, request] = outputs  # the last ones are on their way while it is told
        return []

    def _free_unknown(self, notice: AnyNotice) -> list[Order]:
        if isinstance(notice, Adopted):
            return self._abort_at(notice.sender, notice.request)
        if isinstance(notice, Moved):
            return self._abort_at(notice.target, notice.request)
        return []


def _contender(stream: Stream, instance: InstanceId) -> Tenure | None:
    """The undecided tenure that the instance's stream is at."""
    epoch = stream.tenures.get(instance)
    tenure = None if epoch is None else stream.contenders.get(epoch)
    return tenure if tenure is not None and tenure.instance == instance else None


def _others(stream: Stream) -> list[InstanceId]:
    """Who else may have the request."""
    holders = [tenure.instance for tenure in stream.contenders.values()]
    if stream.promised is not None:
        holders.append(stream.promised[1])
    return sorted({*holders} - {stream.owner})


def _tell(to: InstanceId, request: RequestId, epoch: Epoch, owner: InstanceId) -> Tell:
    return Tell(to, Verdict(request=request, epoch=epoch, sender=FRONT_END, owner=owner))
