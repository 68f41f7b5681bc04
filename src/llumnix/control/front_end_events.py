"""What can happen to a front end's mind (`control/front_end.py`), and what it can ask for.

Every event carries `at_s`, seconds on the front end's own clock. Requests go by the id that the engines know them by:
the one that they arrived with, and after each replay a new one (`ReplayAt.new_id`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from llumnix.control.messages import AnyNotice, Doubt, Verdict
from llumnix.control.orders import MoveOrder
from llumnix.control.prefix_table import PrefixNews
from llumnix.policy.dispatch import DispatchReason
from llumnix.policy.prefix import ChunkId
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import NORMAL, InstanceId, Priority, RequestId


class _FrontEndEvent(msgspec.Struct, frozen=True, tag=True, gc=False):
    at_s: float


# requests, as clients and the driver know them


class NeededAdapter(msgspec.Struct, frozen=True):
    """What the request's model is adapted with; instances that lack it (`Equipped`) cannot serve the request."""

    id: int
    name: str


class Arrived(_FrontEndEvent, frozen=True, tag=True):
    """A new request, under an id that was never used. Answer: one `SendTo`, `Park` or `GiveUp`."""

    request: RequestId
    prompt_tokens: int
    priority: Priority = NORMAL
    only_on: tuple[InstanceId, ...] | None = None
    """Where the client wants it to begin; None: anywhere. A replay goes anywhere."""
    adapter: NeededAdapter | None = None
    not_exact: str = ""
    """Why its stream could not be continued exactly elsewhere once it has made a token; empty: it could."""
    more_comes: bool = False
    """This is the beginning of its prompt: it cannot even begin anew elsewhere."""
    chunks: tuple[ChunkId, ...] = ()
    """Names of the beginning of its prompt, if anybody knows prefixes (`FrontEndMachine.prefix_chunk_tokens`)."""
    may_wait: bool = False
    """Without an instance that can take it, it is parked; else it is given up."""


class Unsent(_FrontEndEvent, frozen=True, tag=True):
    """`SendTo` was answered just now, and the request could not be sent: nobody has it, nobody will count it."""

    request: RequestId


class Finished(_FrontEndEvent, frozen=True, tag=True):
    """The owner's last output went to the client."""

    request: RequestId


class Aborted(_FrontEndEvent, frozen=True, tag=True):
    """The client went away, or a stop string ended the request: it is freed everywhere, or parked no more."""

    request: RequestId


class Broken(_FrontEndEvent, frozen=True, tag=True):
    """The stream cannot go on, say because an engine answered `ReplayAt` with an error: it ends, and the request is
    freed everywhere."""

    request: RequestId
    why: str


# what instances say in their token streams: each instance's in its order


class Outputs(_FrontEndEvent, frozen=True, tag=True):
    """Outputs of one request, `tokens` new tokens in all, of an instance that is not `Stream.live` (the driver need not
    ask about the others), or of an unknown request. `last`: the request ends with them."""

    instance: InstanceId
    request: RequestId
    tokens: int
    outputs: tuple[Any, ...]
    """Whatever the driver calls outputs; not looked at."""
    last: bool = False


class Noticed(_FrontEndEvent, frozen=True, tag=True):
    """A notice, at its place in the token stream of `notice.sender`."""

    notice: AnyNotice


class TurnedAway(_FrontEndEvent, frozen=True, tag=True):
    """The instance ends and did not take the request, or gave it up."""

    instance: InstanceId
    request: RequestId


# what is heard of instances on other ways


class Reported(_FrontEndEvent, frozen=True, tag=True):
    """A load report of an instance that can be reached: from the first one on requests may be sent there. That first
    one must have been made when all that an earlier front end of this index sent was counted."""

    snapshot: InstanceSnapshot


class PrefixesTold(_FrontEndEvent, frozen=True, tag=True):
    """What an instance has in its prefix cache has changed. Told before the report that is sent after it."""

    instance: InstanceId
    news: PrefixNews


class Equipped(_FrontEndEvent, frozen=True, tag=True):
    """The instance has all adapters by now but these."""

    instance: InstanceId
    lacks: tuple[int, ...]


class Closed(_FrontEndEvent, frozen=True, tag=True):
    """The instance takes no more requests, for good; what it has said, or still says, counts."""

    instance: InstanceId


class Departed(_FrontEndEvent, frozen=True, tag=True):
    """The instance will never speak again. `complete`: all that it ever said was told before."""

    instance: InstanceId
    complete: bool = False


class Doubted(_FrontEndEvent, frozen=True, tag=True):
    """A llumlet asks whose the request is."""

    doubt: Doubt


class DriveOut(_FrontEndEvent, frozen=True, tag=True):
    """What is on this draining instance is to begin anew elsewhere; what cannot be continued exactly stays, and
    what no other instance could take. Answer: what that takes, then one `DroveOut`."""

    instance: InstanceId
    why: str


OfRequests = Arrived | Unsent | Finished | Aborted | Broken
InStreams = Outputs | Noticed | TurnedAway
OfInstances = PrefixesTold | Equipped | Closed | Departed | Doubted | DriveOut
FrontEndEvent = Reported | OfRequests | OfInstances | InStreams


class _FrontEndCommand(msgspec.Struct, frozen=True, tag=True, gc=False):
    pass


class SendTo(_FrontEndCommand, frozen=True, tag=True):
    """Send the request, as it arrived, to the instance; `FrontEndMachine.stream` is its stream from now on. Requests of
    one front end must reach an instance in the order in which they are sent: the ledger counts so."""

    request: RequestId
    instance: InstanceId
    reason: DispatchReason
    onward: MoveOrder | None = None
    """Where it goes with its first token: to be told to the instance, a little before the request. May be lost."""


class ReplayAt(_FrontEndCommand, frozen=True, tag=True):
    """No instance goes on with `request`, and that id is forgotten. Send the request to the instance under `new_id`,
    with its prompt and the `delivered_tokens` tokens that the client has; it goes on behind them. May fail
    (`Broken`, `TurnedAway`); an instance that is lost meanwhile needs no answer."""

    request: RequestId
    new_id: RequestId
    instance: InstanceId
    delivered_tokens: int
    why: str
    reason: DispatchReason
    asked_for: bool = False
    """Nothing broke: its instance was to be empty, or ends."""


class Park(_FrontEndCommand, frozen=True, tag=True):
    """For the record: the request waits, under this id, for an instance that can take it. No stream until then."""

    request: RequestId
    why: str


class GiveUp(_FrontEndCommand, frozen=True, tag=True):
    """End the client's stream with this error; the request is forgotten."""

    request: RequestId
    why: str


class Deliver(_FrontEndCommand, frozen=True, tag=True):
    """Hand these outputs to the client's stream, in order. Their tokens are counted already."""

    request: RequestId
    outputs: tuple[Any, ...]


class TellVerdict(_FrontEndCommand, frozen=True, tag=True):
    """Send the verdict to the llumlet of an instance, over the control channel. May get lost: it is asked for again."""

    to: InstanceId
    verdict: Verdict


class Abort(_FrontEndCommand, frozen=True, tag=True):
    """Tell the engine of an instance to abort the request, on the channel by which requests are sent, in order with
    them. May find nothing, or get lost: as long as outputs come it is sent again."""

    to: InstanceId
    request: RequestId


class AskPrefixes(_FrontEndCommand, frozen=True, tag=True):
    """The instance is to tell all that it has in its prefix cache. If that gets lost, it tells it some time later."""

    to: InstanceId


class DroveOut(_FrontEndCommand, frozen=True, tag=True):
    """Answer to `DriveOut`: so many requests were taken from the instance."""

    instance: InstanceId
    count: int


FrontEndCommand = SendTo | ReplayAt | Park | GiveUp | Deliver | TellVerdict | Abort | AskPrefixes | DroveOut
