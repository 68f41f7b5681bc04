"""All that an instance takes: from other instances, the scheduler, front ends, and its own workers."""

from __future__ import annotations

import msgspec

from llumnix.control.messages import AnyMessage, Verdict
from llumnix.control.orders import MoveOrder
from llumnix.control.scheduler_events import SetDraining, SetRole
from llumnix.types import RequestId
from llumnix.wire.base import InstanceInfo, Question, Wire
from llumnix.wire.news import FrontEndLost, InstanceGone


class Peer(Wire, frozen=True, kw_only=True, tag=True):
    """A step of the migration protocol; `sender` is where answers go."""

    sender: InstanceInfo
    message: AnyMessage


class MoveOut(Wire, frozen=True, kw_only=True, tag=True):
    """Answered with a `MoveAnswer` to `reply_to` for each request that goes, and for what does not. A front end's order
    for one that it sends here, to go on with its first token, is answered in the stream alone."""

    order: MoveOrder
    target: InstanceInfo
    reply_to: str = ""


class ClusterSize(Wire, frozen=True, kw_only=True, tag=True):
    """So many instances there are, or will be: they share what a listener can hear. From the scheduler, to instances
    that do not know it yet."""

    instances: int


class TellPrefixes(Wire, frozen=True, kw_only=True, tag=True):
    """A front end has missed something of the prefixes that the instance holds, or is new. Answered to all of them."""


class ListRequests(Question, frozen=True, kw_only=True, tag=True):
    like: str = ""
    """Only those whose client's id has this in it."""


class PullEnded(Wire, frozen=True, kw_only=True, tag=True):
    """Worker `rank` finished, or gave up, pulling the blocks of one stage."""

    request: RequestId
    epoch: int
    stage: int
    rank: int
    ok: bool
    reason: str = ""
    bytes_read: int = 0
    quarantined: bool = False


class BlocksReleased(Wire, frozen=True, kw_only=True, tag=True):
    """No late byte of a quarantined pull can land any more."""

    request: RequestId
    epoch: int
    stage: int
    rank: int


ToInstance = (
    Peer
    | Verdict
    | MoveOut
    | SetDraining
    | SetRole
    | ClusterSize
    | ListRequests
    | TellPrefixes
    | InstanceGone
    | FrontEndLost
    | PullEnded
    | BlocksReleased
)

INSTANCE_MAIL: msgspec.msgpack.Decoder[ToInstance] = msgspec.msgpack.Decoder(ToInstance)
