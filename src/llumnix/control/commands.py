"""Everything that a llumlet can ask of its driver.

A driver carries the commands of one `handle` out in order, before it hands in the next event. Each docstring
says what to do and which event must follow; a command of which nothing is said has no answer. A driver may
hand an answer in at once (a synchronous engine), but only after it carried out all commands of the batch.
"""

from __future__ import annotations

import msgspec

from llumnix.control.messages import AnyMessage, AnyNotice, Commit, Copy, Doubt, Prepare
from llumnix.control.orders import MoveOutcome
from llumnix.types import Epoch, InstanceId, RequestId


class _Command(msgspec.Struct, frozen=True, tag=True):
    pass


# talk


class Send(_Command, frozen=True, tag=True):
    """Send to the llumlet of an instance. May be lost, doubled, late.

    The driver fills in `payload` and `block_ids`: for `Prepare` the request's identity, for `Copy` the ids of
    the blocks named, for `Commit` the ids and the request's whole state.
    """

    to: InstanceId
    message: AnyMessage


class SendToFrontEnd(_Command, frozen=True, tag=True):
    """Send over the control channel to the front end whose request this is. The machine asks again if it must."""

    request: RequestId
    message: Doubt


class Notify(_Command, frozen=True, tag=True):
    """Put a notice into the token stream to the request's front end: after every token that the request has made
    here so far, before any later one. Comes before the `Release` that forgets the request."""

    request: RequestId
    message: AnyNotice


# the engine, at the source


class WatchProgress(_Command, frozen=True, tag=True):
    """From now on send `Progress` after each engine step, and `Preempted`, for this request."""

    request: RequestId


class Unwatch(_Command, frozen=True, tag=True):
    """End of `WatchProgress`."""

    request: RequestId


class PinBlocks(_Command, frozen=True, tag=True):
    """Blocks `[first_block, first_block + blocks)` of the sequence will be read by the target: keep their content
    until `UnpinBlocks`, even if the request ends."""

    request: RequestId
    epoch: Epoch
    first_block: int
    blocks: int


class UnpinBlocks(_Command, frozen=True, tag=True):
    """Give back every pin of this attempt. Nobody will use what is read from now on."""

    request: RequestId
    epoch: Epoch


class Detach(_Command, frozen=True, tag=True):
    """Take the request out of the batch (or the queue), keep its blocks, let steps in flight finish and their tokens
    go out. Then `Detached`; or `Gone` if it ended meanwhile. Neither comes after a `Reattach`."""

    request: RequestId


class Reattach(_Command, frozen=True, tag=True):
    """Put the request back into the batch (or the queue), as if nothing had happened; or forget a `Detach` that is
    not through yet."""

    request: RequestId


class Release(_Command, frozen=True, tag=True):
    """Free the request and its blocks without a word to the client: another instance has it, or nobody needs it.
    No `Gone` follows."""

    request: RequestId


# the engine, at the target


class Reserve(_Command, frozen=True, tag=True):
    """Reserve `blocks` blocks for the request described by the message. Then `Reserved`, or `ReserveFailed`, also if
    this engine has a request of that id."""

    request: RequestId
    epoch: Epoch
    blocks: int
    message: Prepare


class Pull(_Command, frozen=True, tag=True):
    """Read the blocks that the message names from `message.sender`; grow the reservation if they are more.
    Then `Pulled` or `PullFailed`, or neither after a `Drop`."""

    request: RequestId
    epoch: Epoch
    stage: int
    message: Copy | Commit


class Install(_Command, frozen=True, tag=True):
    """Turn reservation and state into a request that runs (or queues, if it has no blocks). Then `Installed`, before
    its first step here; or `InstallFailed`."""

    request: RequestId
    epoch: Epoch
    message: Commit


class Drop(_Command, frozen=True, tag=True):
    """Give the reservation back. An answer that is under way does no harm. Blocks under a running pull stay in
    quarantine until the pull has ended, because a late write may still reach them."""

    request: RequestId
    epoch: Epoch


# the driver itself


class AnswerMove(_Command, frozen=True, tag=True):
    """To whoever gave the order."""

    outcome: MoveOutcome


class WakeAt(_Command, frozen=True, tag=True):
    """Send `TimerFired` at this time; replaces the time of an earlier `WakeAt`."""

    at: float


AnyCommand = (
    Send
    | SendToFrontEnd
    | Notify
    | WatchProgress
    | Unwatch
    | PinBlocks
    | UnpinBlocks
    | Detach
    | Reattach
    | Release
    | Reserve
    | Pull
    | Install
    | Drop
    | AnswerMove
    | WakeAt
)
