"""Virtual usage and freeness: what requests are charged, and how much is left (paper section 4.4).

    freeness F = (total − watermark − Σ virtual usage) / batch

F is in blocks per request, that is, how many more blocks of tokens every request of the batch can produce. One
number stands for every goal, because each goal is a charge:

    a running request                what it holds (all of them: total − free, shared blocks counted once)
    the first request in the queue   what it needs: an instance that cannot run it looks full, and is made room in
    the others in the queue          nothing for migration; what they need when a new request looks for a place
    a high-priority request          besides, the headroom that its instance keeps (`policy/priority.py`)
    an instance that is to go away   infinitely much: everything leaves, nothing comes

The batch counts whoever is charged. Below zero the sum is not divided: an over-committed instance is short of that
many blocks however many requests share the shortage, and giving one away must never look like a loss. Where the batch
is full, what is left is of no use to those that wait: each of them counts as one that is missing.

All functions cost O(1) whatever the instance holds. `priority_target_tokens` None means that priorities are ignored.
"""

from __future__ import annotations

from math import inf

from llumnix.policy.priority import headroom_blocks, missing_headroom_blocks
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceState

_RUNNING = InstanceState.RUNNING
"""By itself: reading a member of an enum costs a call on Python 3.11."""


def held_blocks(instance: InstanceSnapshot) -> int:
    """What the running requests, and the reservations for incoming migrations, hold."""
    return instance.total_blocks - instance.free_blocks


def room_blocks(instance: InstanceSnapshot) -> int:
    """Blocks that a request from elsewhere could have at once, without displacing the queue; 0 without a slot."""
    if instance.running + instance.incoming >= instance.max_running:
        return 0
    return max(0, instance.free_blocks - instance.watermark_blocks - instance.queued_blocks)


def migration_usage(instance: InstanceSnapshot, priority_target_tokens: int | None) -> float:
    """Σ virtual usage when requests are moved, in blocks."""
    if instance.state is not _RUNNING:
        return inf
    return held_blocks(instance) + instance.head_of_line_blocks + headroom_blocks(instance, priority_target_tokens)


def dispatch_usage(instance: InstanceSnapshot, high: bool, priority_target_tokens: int | None) -> float:
    """Σ virtual usage as a new request sees it, in blocks: a normal one respects headroom, a high one seeks it."""
    if instance.state is not _RUNNING:
        return inf
    headroom = missing_headroom_blocks if high else headroom_blocks
    return held_blocks(instance) + instance.queued_blocks + headroom(instance, priority_target_tokens)


def migration_freeness(instance: InstanceSnapshot, priority_target_tokens: int | None) -> float:
    """F when requests are moved; the first of the queue counts as part of the batch. A queue behind a full batch is
    short of a place for each that waits, whatever memory is left."""
    batch = instance.running + (1 if instance.waiting else 0)
    left = _left(instance, migration_usage(instance, priority_target_tokens))
    if instance.waiting and instance.running + instance.incoming >= instance.max_running:
        return min(left, 0.0) - instance.waiting
    return _per_request(left, batch)


def dispatch_freeness(instance: InstanceSnapshot, high: bool, priority_target_tokens: int | None) -> float:
    """F as a new request sees it; the whole queue is charged, so the whole queue counts. An instance whose batch
    is full cannot use its free blocks for a newcomer: it is at most 0."""
    batch = instance.running + instance.waiting
    left = _left(instance, dispatch_usage(instance, high, priority_target_tokens))
    return min(left, 0.0) if batch >= instance.max_running else _per_request(left, batch)


def paper_migration_freeness(instance: InstanceSnapshot, priority_target_tokens: int | None) -> float:
    """F as the paper's published experiments computed it: the whole queue is charged as one member of the batch,
    and a shortage is divided like anything else."""
    left = _left(instance, migration_usage(instance, priority_target_tokens))
    left -= instance.queued_blocks - instance.head_of_line_blocks
    return left / max(1, instance.running + (1 if instance.waiting else 0))


def paper_dispatch_freeness(instance: InstanceSnapshot, high: bool, priority_target_tokens: int | None) -> float:
    """F for placement as the paper's published experiments computed it: a shortage is divided by the requests."""
    left = _left(instance, dispatch_usage(instance, high, priority_target_tokens))
    return left / max(1, instance.running + instance.waiting)


def _left(instance: InstanceSnapshot, usage_blocks: float) -> float:
    return instance.total_blocks - instance.watermark_blocks - usage_blocks


def _per_request(left_blocks: float, batch: int) -> float:
    return left_blocks / batch if left_blocks > 0 and batch > 1 else float(left_blocks)
