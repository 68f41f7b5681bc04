"""Who owns a token stream: the front end's side of a migration.

There is one `Stream` per engine request. Every instance that has or had the request sends its tokens
and notices in one ordered stream of its own; only the owner's reach the client. An instance may have a request more
than once, so its part of the stream falls into tenures: the first owner's has epoch 0, every other begins with
`Adopted` and has its epoch.

Ownership passes on when the new owner's `Adopted` is read and the client has all tokens that it came with: its old
owner, which waits for an answer, has nothing more to say. Else it passes when the old owner's `Moved` is read, thus
after its last token; what the new owner sent before that was held and is handed out then. When the two ends of a
migration cannot agree, the front end decides (`Doubt`, `Verdict`). When the owner dies, a target that adopted and has
exactly the tokens that the client has goes on; else the request is replayed under a new id.
"""

from __future__ import annotations

import msgspec

from llumnix.control.front_end_events import Abort, Deliver, TellVerdict
from llumnix.control.gone import GoneIds
from llumnix.control.messages import FRONT_END, NOBODY, Adopted, AnyNotice, Doubt, Fenced, Moved, Stayed, Verdict
from llumnix.control.stream import FIRST, Held, Stream, Tenure
from llumnix.control.told_aborts import ToldAborts
from llumnix.types import Epoch, InstanceId, RequestId


class Replay(msgspec.Struct, frozen=True):
    """No instance goes on with this stream, and its id is forgotten: begin the request anew under a NEW id, with the
    prompt and the delivered tokens as its prompt."""

    stream: Stream
    why: str
    asked_for: bool = False
    """Nothing broke: its instance is to be empty."""


Order = Deliver | TellVerdict | Abort | Replay


class Ownership:
    """All streams of one front end. Every method returns what the front end has to do, in order.

    A request id that is not in `streams` has ended, was aborted, or goes on under a new id: whoever turns out to have
    it still is told to free it.
    """

    def __init__(self) -> None:
        self.streams: dict[RequestId, Stream] = {}
        self.lost = GoneIds()
        self.dropped = 0
        """Outputs that came from an instance that was not to send them: fenced, lost, or of a request that is over."""
        self._aborts = ToldAborts()

    def opened(self, request: RequestId, owner: InstanceId) -> Stream:
        """The request was sent to `owner`. Its id must never have been used."""
        stream = Stream(request, owner, live=owner, tenures={owner: FIRST})
        self.streams[request] = stream
        return stream

    def outputs_arrived(
        self, request: RequestId, instance: InstanceId, outputs: tuple[object, ...], tokens: int, last: bool = False
    ) -> list[Order]:
        """Outputs (`tokens` new tokens in all) of an instance that is not `stream.live`, or of an unknown request."""
        stream = self.streams.get(request)
        if stream is not None:
            if stream.live == instance:
                return self._deliver(stream, Held(outputs, tokens, last))
            tenure = stream.contender(instance)
            if tenure is not None:
                tenure.waiting.append(Held(outputs, tokens, last))
                return []
        self.dropped += len(outputs)
        return self._abort_again(instance, request) if stream is None else []

    def notice_arrived(self, notice: AnyNotice) -> list[Order]:
        """A notice, at its place among the outputs of `notice.sender`."""
        stream = self.streams.get(notice.request)
        if stream is None:
            return self._free_unknown(notice)
        if isinstance(notice, Adopted):
            return self._adopted(stream, notice)
        if stream.live == notice.sender:
            return self._apply(stream, notice)
        tenure = stream.contender(notice.sender)
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
        stream = self._close(request)
        others = None if stream is None else stream.others
        return self._abort(request, others) if others else []

    def aborted(self, request: RequestId) -> list[Order]:
        """The client went away, or a stop string ended the request: free it everywhere."""
        stream = self._close(request)
        return [] if stream is None else self._abort(request, [stream.owner, *stream.others])

    def never_sent(self, request: RequestId) -> Stream:
        """It was opened, and then could not be sent: nobody has it."""
        return self.streams.pop(request)

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
        if notice.source == stream.live and notice.output_tokens == stream.delivered_tokens:
            # Its `Moved` may take a step of the owner's, which is long where prompts are computed.
            return self._pass_on(stream, notice.sender, notice.epoch)
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
            if stream.request not in self.streams:
                break
            orders += self._deliver(stream, item) if isinstance(item, Held) else self._apply(stream, item)
        if stream.owner == tenure.instance and stream.request in self.streams and tenure.instance in self.lost:
            orders += self._replay(stream, f"{tenure.instance}, where it had moved, was lost")
        return orders

    def _deliver(self, stream: Stream, held: Held) -> list[Order]:
        stream.delivered_tokens += held.tokens
        deliver = Deliver(stream.request, held.outputs)
        return [deliver, *self.finished(stream.request)] if held.last else [deliver]

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
        return [*self.aborted(stream.request), Replay(stream, why, asked_for)]

    # requests that are over

    def _close(self, request: RequestId) -> Stream | None:
        stream = self.streams.pop(request, None)
        if stream is not None:
            stream.live = None
        return stream

    def _abort(self, request: RequestId, holders: list[InstanceId]) -> list[Order]:
        return [self._aborts.tell(holder, request) for holder in holders if holder not in self.lost]

    def _abort_again(self, instance: InstanceId, request: RequestId) -> list[Order]:
        again = None if instance in self.lost else self._aborts.goes_on(instance, request)
        return [] if again is None else [again]

    def _free_unknown(self, notice: AnyNotice) -> list[Order]:
        if isinstance(notice, Adopted):
            return self._abort(notice.request, [notice.sender])
        if isinstance(notice, Moved):
            return self._abort(notice.request, [notice.target])
        return []


def _tell(to: InstanceId, request: RequestId, epoch: Epoch, owner: InstanceId) -> TellVerdict:
    return TellVerdict(to, Verdict(request=request, epoch=epoch, sender=FRONT_END, owner=owner))
