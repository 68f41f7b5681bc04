"""How many instances are to be for prompts, by what is asked of the cluster and what steps cost (`policy/roles.py`).

Of n instances, k for prompts: tokens take so much of the others' time as grows with their batch, and a constant part of
each step, which may last as long as the target; the rest of it is left for prompts. Each more for prompts spares one
such constant part, until the others cannot make all tokens in time any more. It pays where steps are short, most of
them being that constant part (weights), and tokens must come fast; it never makes more tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from llumnix.policy.figures import figures
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot, StepCost
from llumnix.policy.step_cost import PLANNED
from llumnix.policy.virtual_usage import held_blocks
from llumnix.types import InstanceId, InstanceState, Role

TAIL = 2.3
"""By so much the slowest tenth of first tokens waits longer than the mean."""

TOKEN_TAIL = 1.35
"""And its tokens take by so much longer than by the mean batch: instances and moments differ."""

MOST_BUSY = 0.95
"""Beyond that, queues are taken to grow in proportion: it matters which choice is least bad, not by how much."""

ENOUGH = 0.85
"""A score that is not worth a change: below 1, since what is asked goes up and down."""

WORTH_IT = 0.9
"""The worse of the two times must fall to this part of what it was."""

CATCH_UP_S = 10.0
"""In so long what waits to be computed is to be caught up with."""

TYPICAL_LENGTH = 1000
"""Of a request that decodes, where none does."""


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the cluster in a second."""

    prompts_per_s: float
    prompt_tokens_per_s: float
    """To be computed."""
    tokens_per_s: float
    """To be made."""


class RoleTargets(msgspec.Struct, frozen=True, kw_only=True):
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """What would come of so many instances for prompts."""

    for_prompts: int
    first_token_s: float
    """Of all but the slowest tenth, as the next."""
    token_s: float
    score: float
    """The worse of the two times, each in units of its target."""


@dataclass(frozen=True, slots=True)
class RoleChoice:
    """Whose role changes, and why."""

    changes: dict[InstanceId, Role]
    reason: str


def foresee(
    for_prompts: int, instances: int, cost: StepCost, length_tokens: float, demand: Demand, targets: RoleTargets
) -> Outlook:
    """`length_tokens`: of a request that decodes, in tokens."""
    others = instances - for_prompts
    fixed_s = cost.fixed_ms / 1e3
    growing = demand.tokens_per_s * (cost.request_us + cost.context_token_us * length_tokens) / 1e6
    prompts = demand.prompt_tokens_per_s * cost.prefill_token_us / 1e6
    spare = max(0.0, others * (1 - fixed_s / (PLANNED * targets.tpot_s)) - growing)
    busy = min(prompts / max(for_prompts + spare, 1e-6), 1e3)  # part of the time that there is for prompts
    beside = min(spare, max(0.0, prompts - for_prompts * MOST_BUSY))
    token_s = TOKEN_TAIL * fixed_s * _stretched(1 - (growing + beside) / others)
    alone_s = prompts / max(demand.prompts_per_s, 1e-9) / (1.0 if for_prompts else max(spare / others, 1 - MOST_BUSY))
    first_token_s = token_s + alone_s * (1 + TAIL * _queue(busy) / (for_prompts or instances))
    score = max(first_token_s / targets.ttft_s, token_s / targets.tpot_s)
    return Outlook(for_prompts, first_token_s, token_s, score)


def _queue(busy: float) -> float:
    """Mean wait for one server that takes the same time for each (M/D/1), in units of that time."""
    within = min(busy, MOST_BUSY)
    return within / (2 * (1 - within)) + max(0.0, busy - MOST_BUSY) / (2 * (1 - MOST_BUSY) ** 2)


def _stretched(share: float) -> float:
    """How many times longer a step takes of which only this part is its constant one."""
    within = max(share, 1 - MOST_BUSY)
    return 1 / within + max(0.0, 1 - MOST_BUSY - share) / (1 - MOST_BUSY) ** 2


def choose_roles(cluster: ClusterSnapshot, demand: Demand, targets: RoleTargets) -> RoleChoice | None:
    """More for prompts, or fewer, if that is nearer to the targets; None if all is well, or nothing is known.
    The fewest for prompts that meet both targets are wanted, else as many as make the worse of the two best."""
    serving = [each for each in cluster.instances if each.state is InstanceState.RUNNING]
    costs = [each.step_cost for each in serving if each.step_cost is not None]
    if len(serving) < 2 or not costs or not demand.prompts_per_s:
        return None
    decoding = sum(each.decoding for each in serving)
    length = sum(each.context_tokens for each in serving) / decoding if decoding else TYPICAL_LENGTH
    cost = _mean(costs)
    late_tokens = sum(each.prefill_tokens for each in serving)
    demand = replace(demand, prompt_tokens_per_s=demand.prompt_tokens_per_s + late_tokens / CATCH_UP_S)
    outlooks = [foresee(k, len(serving), cost, length, demand, targets) for k in range(len(serving))]
    now = outlooks[min(len(serving) - 1, sum(each.role is Role.PREFILL for each in serving))]
    best = next((each for each in outlooks if each.score <= ENOUGH), min(outlooks, key=lambda each: each.score))
    if now.score <= ENOUGH or best.score > WORTH_IT * now.score:
        return None
    return _half_way(serving, now, best, targets)


def _mean(costs: list[StepCost]) -> StepCost:
    fields = StepCost.__struct_fields__
    return StepCost(**{name: sum(getattr(cost, name) for cost in costs) / len(costs) for name in fields})


def _half_way(serving: list[InstanceSnapshot], now: Outlook, best: Outlook, targets: RoleTargets) -> RoleChoice:
    """To the best, as the next look may see another one: who has least to give away begins with prompts, who has least
    to compute ends with them."""
    count = (abs(best.for_prompts - now.for_prompts) + 1) // 2
    if best.for_prompts > now.for_prompts:
        others = [each for each in serving if each.role is not Role.PREFILL]
        chosen = sorted(others, key=lambda each: (held_blocks(each), each.id))[:count]
        for_prompts, what = now.for_prompts + count, "more"
    else:
        computing = [each for each in serving if each.role is Role.PREFILL]
        chosen = sorted(computing, key=lambda each: (each.prefill_tokens, each.id))[:count]
        for_prompts, what = now.for_prompts - count, "fewer"
    turned = {each.id: what == "more" for each in chosen}
    is_for_prompts = {each.id: each.role is Role.PREFILL for each in serving} | turned
    other = Role.DECODE if for_prompts else Role.MIXED
    wanted = {name: Role.PREFILL if its else other for name, its in is_for_prompts.items()}
    changes = {each.id: wanted[each.id] for each in serving if wanted[each.id] is not each.role}
    firsts = [figures(each.first_token_s, 2) for each in (now, best)]
    tokens = [figures(each.token_s * 1e3, 3) for each in (now, best)]
    reason = (
        f"{count} {what} for prompts, {best.for_prompts} are wanted: first token {' → '.join(firsts)} s "
        f"(target {targets.ttft_s:g}), tokens {' → '.join(tokens)} ms (target {targets.tpot_s * 1e3:g})"
    )
    return RoleChoice(changes, reason)
