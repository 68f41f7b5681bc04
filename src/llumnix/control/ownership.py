"""Who owns a token stream: the front end's side of a migration.

The front end holds one `Stream` per engine request. Every instance that has or had the request sends its tokens
and notices in one ordered stream of its own; only the owner's reach the client. Ownership flips when the owner's
`Moved` is read, thus after its last token. What another instance sends before that is held, and handed out at the
flip. When owner and target lose each other, the front end decides (`Doubt` → `Verdict`); when the owner dies, the
target goes on if it has exactly the tokens that the client has, else the request is replayed under a new id.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from llumnix.control.messages import AnyNotice, Doubt, Verdict
from llumnix.types import InstanceId, RequestId


class Order(msgspec.Struct, frozen=True):
    pass


class Deliver(Order, frozen=True):
    """Hand these outputs to the client's stream, in order."""

    request: RequestId
    outputs: tuple[object, ...]


class Tell(Order, frozen=True):
    """Send the verdict to the llumlet of an instance, over the control channel. May get lost: the llumlet asks again."""

    to: InstanceId
    verdict: Verdict


class Abort(Order, frozen=True):
    """Tell the engine of an instance to abort the request, on the channel by which requests are sent."""

    to: InstanceId
    request: RequestId


class Replay(Order, frozen=True):
    """Nobody has the request any more (this id is forgotten): start it under a NEW id with prompt + delivered tokens."""

    request: RequestId
    delivered_tokens: int
    why: str


class Stream:
    """One engine request. Two fields are for the hot path:

    if stream.live == instance:
        stream.delivered_tokens += tokens   # and deliver
    else:
        orders = ownership.outputs_arrived(...)
    """

    live: InstanceId | None
    """Whose outputs go straight to the client; None while nobody's may."""
    owner: InstanceId
    """Where aborts go."""
    delivered_tokens: int


class Ownership:
    """All streams of one front end. Every method returns what the front end has to do, in order.

    A request id that is not here has ended, was aborted, or goes on under a new id: whoever still has it frees it.
    """

    streams: dict[RequestId, Stream]
    lost: set[InstanceId]

    def opened(self, request: RequestId, owner: InstanceId) -> Stream:
        """The request was sent to `owner`; the id must be new."""
        raise NotImplementedError

    def outputs_arrived(
        self, request: RequestId, instance: InstanceId, outputs: Sequence[object], tokens: int
    ) -> list[Order]:
        """Outputs (with `tokens` new tokens in all) of an instance that is not `stream.live`, or of an unknown request."""
        raise NotImplementedError

    def notice_arrived(self, notice: AnyNotice) -> list[Order]:
        """A notice, at its place among the outputs of `notice.sender`."""
        raise NotImplementedError

    def doubted(self, doubt: Doubt) -> list[Order]:
        """A llumlet asks. No order means: not decided yet, it will ask again."""
        raise NotImplementedError

    def instance_gone(self, instance: InstanceId) -> list[Order]:
        """The instance will never speak again. Streams are taken in the order in which they were opened."""
        raise NotImplementedError

    def closed(self, request: RequestId) -> list[Order]:
        """The last output was delivered, the client went away, or a stop string ended it: free it everywhere."""
        raise NotImplementedError
