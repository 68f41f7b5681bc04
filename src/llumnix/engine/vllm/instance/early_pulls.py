"""Pulls that begin when word of their blocks arrives, on the mailbox's thread, while the engine is in a step.

The main thread reads mail between two steps. If a pull began only then, it would end in the next step, and what follows
upon it would wait for that one's end: a step for each stage, the last one included, in which the request stands still.

So the main thread says beforehand where the next blocks of a request that arrives go. What fits is begun before the
message is passed on; the main thread finds it begun (`take_back`) when it comes to the message, or when the attempt is
over before that, and hears of the pull's end after the message, since both come through the mailbox's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import NamedTuple

from llumnix.control.messages import Commit, Copy
from llumnix.engine.vllm.instance.block_tables import Layout
from llumnix.types import InstanceId, RequestId
from llumnix.wire.to_worker import PullBlocks

Key = tuple[RequestId, int]
"""Request and epoch of the attempt."""

_MAX_BLOCKS = 1 << 32  # of any pool


class Refusal(Exception):
    """The target cannot take the request; the text says why. Cheap, and not an error."""


class NoAdapter(Refusal):
    """For the sake of its LoRA adapter: one without could be taken."""


class Origin(NamedTuple):
    """Where a request comes from."""

    instance: InstanceId
    addresses: tuple[str, ...]
    """Of its workers' transports, by rank."""
    timeout_s: float
    """Of a pull."""


class LaidOut(NamedTuple):
    """Where the next blocks of a request go. Nothing else writes there, or reads."""

    origin: Origin
    stage: int
    """The one that comes next."""
    first_block: int
    layout: Layout
    state_blocks: Sequence[int]


class EarlyPulls:
    """`begin` is the mailbox thread's, all else the main thread's."""

    def __init__(self, order: Callable[[PullBlocks], None]) -> None:
        """`order` has the workers begin one; it is called on the mailbox's thread."""
        self._order = order
        self._lock = Lock()
        self._laid_out: dict[Key, LaidOut] = {}
        self._begun: dict[Key, PullBlocks] = {}

    def lay_out(self, key: Key, laid_out: LaidOut) -> None:
        """Until `take_back` a pull may begin there at any moment."""
        with self._lock:
            self._laid_out[key] = laid_out

    def begin(self, message: Copy | Commit) -> None:
        """Begins what the message names, if it is what was expected. If not, the main thread says why."""
        key = message.request, message.epoch
        with self._lock:
            laid_out = self._laid_out.get(key)
            order = None if laid_out is None else _order(message, laid_out)
            if order is not None:
                del self._laid_out[key]
                self._begun[key] = order
                self._order(order)

    def take_back(self, key: Key) -> PullBlocks | None:
        """From here on none begins. Returns one that has begun, once."""
        with self._lock:
            self._laid_out.pop(key, None)
            return self._begun.pop(key, None)


def _order(message: Copy | Commit, laid_out: LaidOut) -> PullBlocks | None:
    expected = laid_out.origin.instance, laid_out.stage, laid_out.first_block
    end = message.first_block + message.blocks
    if expected != (message.sender, message.stage, message.first_block) or not laid_out.layout.reaches(end):
        return None
    try:
        return order_to_pull(message, laid_out.origin, laid_out.layout, laid_out.state_blocks)
    except Refusal:
        return None


def order_to_pull(
    message: Copy | Commit, origin: Origin, layout: Layout, state_blocks: Sequence[int]
) -> PullBlocks | None:
    """None if there is nothing to pull. Raises Refusal."""
    own = layout.ids(message.first_block, message.blocks)
    if isinstance(message, Commit):
        own += state_blocks
        if state_blocks and 0 in message.block_ids[-len(state_blocks) :]:
            raise Refusal("the source names no block with its state")
    if len(own) != len(message.block_ids):
        raise Refusal(f"the source names {len(message.block_ids)} blocks, {len(own)} are laid out here")
    if not all(0 <= theirs < _MAX_BLOCKS for theirs in message.block_ids):
        raise Refusal("the source names blocks that cannot be")
    # 0 is the null block: outside of a sliding window on one side, so never read again.
    pairs = [(theirs, ours) for theirs, ours in zip(message.block_ids, own, strict=True) if theirs and ours]
    if not pairs:
        return None
    return PullBlocks(
        request=message.request,
        epoch=message.epoch,
        stage=message.stage,
        addresses=origin.addresses,
        source_blocks=tuple(theirs for theirs, _ in pairs),
        target_blocks=tuple(ours for _, ours in pairs),
        timeout_s=origin.timeout_s,
    )
