"""Priorities: the headroom that an instance with a high-priority request keeps free (paper section 4.4.1).

A high-priority request is slowed down by whatever else runs in its batch. So an instance that holds one counts
as if it had room for only `priority_target_tokens`: everything above that is charged as headroom, normal requests
go elsewhere, and those that are there are given away.
"""

from __future__ import annotations

from llumnix.policy.demand import demand_blocks
from llumnix.policy.snapshot import InstanceSnapshot


def holds_high(instance: InstanceSnapshot) -> bool:
    """A high-priority request runs or waits there."""
    return instance.high_running + instance.high_waiting > 0


def promised_blocks(instance: InstanceSnapshot, priority_target_tokens: int) -> int:
    """Blocks that are kept free for high-priority requests where there are any; 0 on an instance that is smaller
    than the target."""
    if not priority_target_tokens:
        return instance.total_blocks
    kinds = [(size, 0) for size, _ in instance.kv_groups]  # many requests: no window holds them all
    used = demand_blocks(priority_target_tokens, instance.block_tokens, instance.state_blocks, kinds)
    return max(0, instance.total_blocks - used)


def headroom_blocks(instance: InstanceSnapshot, priority_target_tokens: int | None) -> int:
    """Blocks charged as headroom now, all shares together; none if priorities are ignored (None)."""
    if priority_target_tokens is None or not holds_high(instance):
        return 0
    return promised_blocks(instance, priority_target_tokens)


def missing_headroom_blocks(instance: InstanceSnapshot, priority_target_tokens: int | None) -> int:
    """Blocks of headroom that a high-priority request would have to make: it goes where there is headroom already,
    so that few instances pay for all."""
    if priority_target_tokens is None or holds_high(instance):
        return 0
    return promised_blocks(instance, priority_target_tokens)
