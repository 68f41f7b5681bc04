"""What the two ends of a migration and the front end say to each other.

Headers only: what a machine must know to decide. The driver fills in `payload` and `block_ids` when it
sends and uses them when it carries out the command that the machine answers with; no machine reads them.
Every message names the request and the epoch of the attempt; late answers of an older epoch change nothing.
"""

from __future__ import annotations

import msgspec

from llumnix.control.orders import MoveOutcome
from llumnix.types import Epoch, InstanceId, RequestId

FRONT_END = InstanceId("front end")
"""The sender of a `Verdict`."""

NOBODY = InstanceId("")
"""The owner in a `Verdict` on a request that has ended or goes on under another id: everybody frees it."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    request: RequestId
    epoch: Epoch
    sender: InstanceId


# source -> target


class Prepare(Message, frozen=True, kw_only=True, tag=True):
    """Asks the target to reserve `blocks` blocks (0: the request is queued and moves without KV)."""

    blocks: int
    payload: bytes = b""
    to_decode: bool = False
    """It is to make its tokens there: a target that is for prompts by now refuses it."""


class Copy(Message, frozen=True, kw_only=True, tag=True):
    """Blocks `[first_block, first_block + blocks)` of the sequence are settled and may be read."""

    stage: int
    first_block: int
    blocks: int
    block_ids: tuple[int, ...] = ()


class Commit(Message, frozen=True, kw_only=True, tag=True):
    """The request left the source's batch: read the last blocks, install its state, answer."""

    stage: int
    first_block: int
    blocks: int
    state_blocks: int = 0
    """Blocks to read beside these, with a state that is overwritten in place."""
    block_ids: tuple[int, ...] = ()
    payload: bytes = b""


class Cancel(Message, frozen=True, kw_only=True, tag=True):
    """The attempt is over; the request stays at the source (or is finished)."""

    reason: str


# target -> source


class Prepared(Message, frozen=True, kw_only=True, tag=True):
    """Blocks are reserved; the first `skip_blocks` are in the target's prefix cache already."""

    skip_blocks: int


class Copied(Message, frozen=True, kw_only=True, tag=True):
    stage: int
    bytes_read: int


class Committed(Message, frozen=True, kw_only=True, tag=True):
    """The target runs the request. From here on the source may free its blocks."""

    bytes_read: int


class Refused(Message, frozen=True, kw_only=True, tag=True):
    """The target cannot or will not take it (any phase). Cheap, and not an error."""

    reason: str
    for_adapter: bool = False
    """Only for the sake of its LoRA adapter."""


# source or target -> front end, front end -> both


class Doubt(Message, frozen=True, kw_only=True, tag=True):
    """The front end must say who owns the request: the source heard no acknowledgement of its commit in time, or the
    target (`sender == target`) adopted it and was not told that this stands."""

    target: InstanceId


class Verdict(Message, frozen=True, kw_only=True, tag=True):
    """The front end's word on one attempt; it never changes. The loser's copy is freed; what it still sends is dropped.
    A target also gets one, unasked, when its adoption stands."""

    owner: InstanceId


# in the token stream of an instance, to the front end (same order as the tokens)


class Adopted(Message, frozen=True, kw_only=True, tag=True):
    """The target installed the request, which had `output_tokens` output tokens when `source` gave it away."""

    source: InstanceId
    output_tokens: int


class Moved(Message, frozen=True, kw_only=True, tag=True):
    """The source handed the request over; its last token went out before this notice."""

    outcome: MoveOutcome

    @property
    def target(self) -> InstanceId:
        return self.outcome.order.target


class Stayed(Message, frozen=True, kw_only=True, tag=True):
    """An attempt ended without a move; the request goes on at the source (or ended there)."""

    outcome: MoveOutcome


class Fenced(Message, frozen=True, kw_only=True, tag=True):
    """The loser of a verdict freed its copy; nothing of this epoch follows on its stream."""


AnyMessage = Prepare | Copy | Commit | Cancel | Prepared | Copied | Committed | Refused | Doubt | Verdict
"""What travels on control channels: may be lost, doubled, late or out of order."""

AnyNotice = Adopted | Moved | Stayed | Fenced
"""What travels in token streams: complete and in order for as long as the instance lives."""
