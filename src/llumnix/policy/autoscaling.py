"""When to add an instance, and which one to take away (paper section 4.4.4).

The measure is the freeness of the cluster as if it were one instance: what is left in all of them, per request of all
batches. A mean of the instances' own numbers would let one idle instance outweigh ten full ones. Freeness is that of
dispatch, without priorities: the whole queue is charged, and headroom is no reason to buy more. What is free where
only prompts are computed is of no use to tokens, and counts for nothing; what a queue lacks there is lacking.

Instances that are starting count as empty ones; those that drain, or fail to start again and again, are no capacity,
but hold a place. State goes in and comes out, time is in the snapshot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from llumnix.config import ScalingConfig
from llumnix.policy.demand import queued_demand_blocks
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot
from llumnix.policy.virtual_usage import held_blocks
from llumnix.types import InstanceId, InstanceState, Role


@dataclass(frozen=True, slots=True)
class ScalingState:
    """Since when the freeness has been out of bounds on either side; None: it is not."""

    low_since_s: float | None = None
    high_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class ScaleOut:
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class ScaleIn:
    instance: InstanceId
    reason: str


@dataclass(frozen=True, slots=True)
class Stay:
    reason: str


ScalingDecision = ScaleOut | ScaleIn | Stay


def scale(
    cluster: ClusterSnapshot,
    starting: int,
    state: ScalingState,
    config: ScalingConfig,
    failing: int = 0,
    room: int | None = None,
) -> tuple[ScalingDecision, ScalingState]:
    """`starting`: instances that were ordered and do not report as running yet; `failing`: those that are tried again
    and again and may never run; `room`: for how many more there are devices (one that ends has its own until it is
    gone), None if nobody knows. After a decision the window starts anew, so that its effect can be seen before the next
    one."""
    serving = [instance for instance in cluster.instances if instance.state is InstanceState.RUNNING]
    capacity = len(serving) + starting
    allowed = config.max_instances - len(cluster.instances) - starting - failing
    places_left = allowed if room is None else min(allowed, room)
    full = "" if places_left > 0 else _why_full(allowed, config)
    if capacity < config.min_instances:
        least = f"{capacity} of at least {config.min_instances} instances"
        if full:
            return Stay(f"{least}, but {full}"), ScalingState()
        return ScaleOut(min(config.min_instances - capacity, places_left), least), ScalingState()
    if not serving:
        return Stay(f"{starting} starting, none serves yet"), ScalingState()
    held = HeldDemand(cluster.held_requests, cluster.held_tokens)
    freeness = cluster_freeness(serving, starting, held)
    may_shrink = not starting and capacity > config.min_instances
    state = _watch(freeness, cluster.at, state, config, may_shrink)
    if _long_enough(state.low_since_s, cluster.at, config) and places_left > 0:
        return _scale_out(serving, starting, places_left, config, held), ScalingState()
    if _long_enough(state.high_since_s, cluster.at, config) and may_shrink:
        decision = _scale_in(serving, freeness, config, held)
        return decision, ScalingState() if isinstance(decision, ScaleIn) else state
    why = _why_stay(cluster.at, state, config, full, starting, capacity)
    return Stay(f"freeness {freeness:.4g}, {capacity} instances: {why}"), state


def _why_full(allowed: int, config: ScalingConfig) -> str:
    if allowed > 0:
        return "no GPU is free for one more"
    return f"there are as many as there may be (--max-instances {config.max_instances})"


def _why_stay(at: float, state: ScalingState, config: ScalingConfig, full: str, starting: int, capacity: int) -> str:
    """What keeps the cluster as large as it is."""
    if state.low_since_s is not None:
        below = f"below {config.scale_out_freeness:g} (--scale-out-freeness)"
        if full:
            return f"{below}, but {full}"
        return f"{below}, for {_of_window(at - state.low_since_s, config)}"
    if state.high_since_s is not None:
        above = f"above {config.scale_in_freeness:g} (--scale-in-freeness)"
        if capacity <= config.min_instances:
            return f"{above}, but there are as few as there may be (--min-instances {config.min_instances})"
        if starting:
            return f"{above}, but {starting} {'is' if starting == 1 else 'are'} starting"
        return f"{above}, for {_of_window(at - state.high_since_s, config)}"
    limits = f"{config.scale_out_freeness:g} and {config.scale_in_freeness:g}"
    return f"between {limits} (--scale-out-freeness, --scale-in-freeness)"


def _of_window(seconds: float, config: ScalingConfig) -> str:
    return f"{seconds:.1f} of {config.scale_window_s:g} s (--scale-window-s)"


@dataclass(frozen=True, slots=True)
class HeldDemand:
    """What waits at the front ends. It counts as if it waited in the queue of an instance."""

    requests: int = 0
    tokens: int = 0


NO_DEMAND = HeldDemand()


def cluster_freeness(serving: list[InstanceSnapshot], empty_ones: int = 0, held: HeldDemand = NO_DEMAND) -> float:
    """Of all instances as one, with `empty_ones` more of their mean size. Divided also below zero: the question is
    how many instances would help, and that is linear."""
    return _freeness_by_size(serving, held)(empty_ones)


def _freeness_by_size(serving: list[InstanceSnapshot], held: HeldDemand) -> Callable[[int], float]:
    """`cluster_freeness` as a function of the empty ones."""
    for_prompts = [one for one in serving if one.role is Role.PREFILL]
    for_tokens = [one for one in serving if one.role is not Role.PREFILL]
    if not for_tokens:  # then they make their tokens, too
        for_prompts, for_tokens = [], for_prompts
    left = sum(_usable_blocks(one) for one in for_tokens) + sum(min(_usable_blocks(one), 0) for one in for_prompts)
    if held.requests:
        mean_prompt_tokens = -(-held.tokens // held.requests)
        left -= held.requests * queued_demand_blocks(mean_prompt_tokens, serving[0])
    batch = max(1, sum(one.running + one.waiting for one in serving) + held.requests)
    capacity = _mean_capacity_blocks(for_tokens)
    return lambda empty_ones: (left + empty_ones * capacity) / batch


def _usable_blocks(instance: InstanceSnapshot) -> int:
    """That are free, if not for a batch that is full before a queue; below zero, what its queue lacks."""
    left = instance.free_blocks - instance.watermark_blocks - instance.queued_blocks
    return min(left, 0) if instance.running + instance.waiting > instance.max_running else left


def _mean_capacity_blocks(serving: list[InstanceSnapshot]) -> float:
    return sum(one.total_blocks - one.watermark_blocks for one in serving) / len(serving) if serving else 0.0


def _watch(freeness: float, at: float, state: ScalingState, config: ScalingConfig, may_shrink: bool) -> ScalingState:
    """While none may leave no time is counted towards that: whoever comes, say to take another's place, is there for a
    whole window."""
    low = high = None
    if freeness < config.scale_out_freeness:
        low = at if state.low_since_s is None else state.low_since_s
    elif freeness > config.scale_in_freeness:
        high = at if state.high_since_s is None or not may_shrink else state.high_since_s
    return ScalingState(low, high)


def _long_enough(since_s: float | None, at: float, config: ScalingConfig) -> bool:
    return since_s is not None and at >= since_s + config.scale_window_s


def _scale_out(
    serving: list[InstanceSnapshot], starting: int, most: int, config: ScalingConfig, held: HeldDemand
) -> ScaleOut:
    """As many as bring the freeness back, at most `most`."""
    freeness = _freeness_by_size(serving, held)
    count = 1
    while count < most and freeness(starting + count) < config.scale_out_freeness:
        count += 1
    low = f"freeness {freeness(starting):.4g} below {config.scale_out_freeness:g} for {config.scale_window_s:g} s"
    return ScaleOut(count, f"{low}; {freeness(starting + count):.4g} with {count} more")


def _scale_in(
    serving: list[InstanceSnapshot], freeness: float, config: ScalingConfig, held: HeldDemand
) -> ScaleIn | Stay:
    """The one that is cheapest to empty, unless the others could not carry its load; never the last one for prompts, or
    for tokens."""
    roles = Counter(one.role for one in serving)
    spare = [one for one in serving if _can_be_spared(one.role, roles)]
    if not spare:
        return Stay(f"freeness {freeness:.4g}, but each instance is the last for what it is for")
    leaver = min(spare, key=_cost_to_empty)
    without = cluster_freeness(serving, 0 if leaver.role is Role.PREFILL else -1, held)
    if without < config.scale_out_freeness:
        return Stay(f"freeness {freeness:.4g}, but {without:.4g} with one instance less")
    high = f"freeness {freeness:.4g} above {config.scale_in_freeness:g} for {config.scale_window_s:g} s"
    cheapest = f"{leaver.id} is cheapest to empty: {leaver.running} running, {held_blocks(leaver)} blocks to copy"
    return ScaleIn(leaver.id, f"{high}; {without:.4g} with one instance less; {cheapest}")


def _can_be_spared(role: Role, roles: Counter[Role]) -> bool:
    """Without one of this role there is still one for prompts, and one for tokens."""
    if role is not Role.MIXED:
        return roles[role] > 1
    others = set((roles - Counter([role])).keys())
    return others not in ({Role.PREFILL}, {Role.DECODE})


def _cost_to_empty(instance: InstanceSnapshot) -> tuple[int, int, int, InstanceId]:
    """High-priority requests are best left where they are; then the blocks to copy decide; who waits moves for free."""
    high = instance.high_running + instance.high_waiting
    return high, held_blocks(instance), instance.running + instance.waiting, instance.id
