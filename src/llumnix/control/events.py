"""Everything that can happen to a llumlet: what a driver tells it, one event at a time.

Every event carries `at`, seconds on the driver's clock, so that no machine reads a clock. Events about
one instance must come in the order in which they happened there.
"""

from __future__ import annotations

import msgspec

from llumnix.control.messages import AnyMessage
from llumnix.control.orders import MoveOrder
from llumnix.policy.snapshot import RequestSnapshot
from llumnix.types import Epoch, InstanceId, RequestId


class _Event(msgspec.Struct, frozen=True, tag=True):
    at: float


# orders and news from outside


class MoveOrdered(_Event, frozen=True, tag=True):
    """An order came. `candidates` describes every unfinished request of this instance (or at least the one named), as
    of now.

    Exactly one `AnswerMove` follows for the one named or for each that is picked, and if fewer than were wanted were
    picked one more with request None, for all those that are missing.
    """

    order: MoveOrder
    candidates: tuple[RequestSnapshot, ...]


class Received(_Event, frozen=True, tag=True):
    """A control message arrived from another llumlet, or a `Verdict` from the front end."""

    message: AnyMessage


class PeerLost(_Event, frozen=True, tag=True):
    """An instance is gone for good (its id is never used again)."""

    instance: InstanceId


class Draining(_Event, frozen=True, tag=True):
    """From now on this instance refuses incoming migrations."""


class Accepting(_Event, frozen=True, tag=True):
    """This instance takes migrations again."""


class TimerFired(_Event, frozen=True, tag=True):
    """The time of the last `WakeAt` has come. One too many, or one too early, does no harm."""


# from the engine, about a request that is to leave


class Progress(_Event, frozen=True, tag=True):
    """After an engine step, for each request under `WatchProgress`.

    `settled_blocks` counts FULL blocks whose content never changes again, from the start of the sequence;
    `total_blocks` is everything it holds.
    """

    request: RequestId
    settled_blocks: int
    total_blocks: int
    output_tokens: int
    decoding: bool
    """Its prefill is over: it makes a token per step."""
    queued: bool = False
    """It holds no blocks and is in no step."""


class Detached(_Event, frozen=True, tag=True):
    """Answer to `Detach`: out of the batch, no step in flight, every token that it made has gone out."""

    request: RequestId
    total_blocks: int
    """All its blocks, the last one partly filled; 0 for a queued request."""
    output_tokens: int
    state_blocks: int = 0
    """Those it holds beside them, which come with the commit."""


class Preempted(_Event, frozen=True, tag=True):
    """A watched request lost its blocks and went back to the queue."""

    request: RequestId


class Gone(_Event, frozen=True, tag=True):
    """A request ended here: finished, aborted, or its front end is gone. Its blocks are free, pinned ones apart.

    To be sent for every request that ends (those that no machine knows cost one look-up), but not for one
    that was freed by a `Release`.
    """

    request: RequestId
    why: str


# from the engine, about a request that is to come


class Reserved(_Event, frozen=True, tag=True):
    """Answer to `Reserve`. The first `skip_blocks` blocks need no copying: the prefix cache has them."""

    request: RequestId
    epoch: Epoch
    skip_blocks: int


class ReserveFailed(_Event, frozen=True, tag=True):
    request: RequestId
    epoch: Epoch
    reason: str
    for_adapter: bool = False
    """Only for the sake of its LoRA adapter."""


class Pulled(_Event, frozen=True, tag=True):
    """Answer to `Pull`: the bytes are in the reserved blocks."""

    request: RequestId
    epoch: Epoch
    stage: int
    bytes_read: int


class PullFailed(_Event, frozen=True, tag=True):
    request: RequestId
    epoch: Epoch
    stage: int
    reason: str


class Installed(_Event, frozen=True, tag=True):
    """Answer to `Install`: the request is in this engine with `output_tokens` output tokens, no new one yet."""

    request: RequestId
    epoch: Epoch
    output_tokens: int


class InstallFailed(_Event, frozen=True, tag=True):
    request: RequestId
    epoch: Epoch
    reason: str


AnyEvent = (
    MoveOrdered
    | Received
    | PeerLost
    | Draining
    | Accepting
    | TimerFired
    | Progress
    | Detached
    | Preempted
    | Gone
    | Reserved
    | ReserveFailed
    | Pulled
    | PullFailed
    | Installed
    | InstallFailed
)
