"""Placement by time: a new request goes where it is served soonest (the default policy's rule).

The measure is the time to its first token, what its next tokens take besides (by the first alone, an instance with an
empty queue and a large batch looks as good as an idle one), and a share of what it costs the others there, who wait
while its prompt is computed in their steps. Memory still comes first, as in the paper: only instances with room for the
request now are compared. Where none has, it is memory that it waits for, and freeness decides; so it does between two
that are equally soon.

Where a part of the prompt is cached somewhere, computing it elsewhere is charged twice: once for the time, and once
because what is computed again pushes as much out of a cache. Without that charge a cluster whose caches are too small
for all prefixes computes them again and again from some load on.

High-priority requests are placed by freeness, which gathers them where there is headroom for them already.

Where instances have roles, a prompt costs nobody a token: on one for prompts, who decodes leaves, and one for tokens
keeps to its target. So there only the time to the first token counts. One for tokens without a target comes last,
also while nothing is known of steps. It does not even take a prompt for which no other has room now: that waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llumnix.policy.dispatch import FREENESS, LAST, Candidate, DispatchRank, DispatchRequest, DispatchRule, Judgement
from llumnix.policy.roles import takes_prompts
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.step_cost import first_token_s, token_s
from llumnix.types import Role

NEXT_TOKENS = 10
"""So many tokens after the first one count."""

SHARE_OF_OTHERS = 0.2
"""Of the time that those who run there wait longer, together, since the prompt is computed in their steps."""

TYPICAL_TOKENS = 512
"""Of a prompt, to rank instances before anything is known of the request."""

ALIKE_S = 0.005
"""Instances whose times fall into the same interval of this length are equally soon: less is noise of a fit."""


_MIXED, _DECODE = Role.MIXED, Role.DECODE
"""By themselves: reading a member of an enum costs a call on Python 3.11, and each decision reads a dozen."""


def _by_time(
    instance: InstanceSnapshot, high: bool, last_turn: int, priority_target_tokens: int | None
) -> DispatchRank:
    if high:
        return _by_freeness(instance, high, last_turn, priority_target_tokens)
    by_freeness = FREENESS.rank(instance, high, last_turn, priority_target_tokens)
    return _judged(instance, TYPICAL_TOKENS, 0, 0).cost, by_freeness[0]


def _by_freeness(
    instance: InstanceSnapshot, high: bool, last_turn: int, priority_target_tokens: int | None
) -> DispatchRank:
    """One for tokens comes last: for a normal request if it has no target, which would say how much of prompts it can
    compute, for one of high priority in any case, which that target would keep waiting."""
    by_freeness = FREENESS.rank(instance, high, last_turn, priority_target_tokens)
    comes_last = instance.role is _DECODE if high else not takes_prompts(instance)
    return (LAST, by_freeness[0]) if comes_last else by_freeness


def _judge(request: DispatchRequest, candidates: Sequence[Candidate]) -> list[Judgement]:
    tokens = request.prompt_tokens
    most_cached = max([each.cached_tokens for each in candidates])  # a generator takes twice as long for a dozen
    return [_judged(each.instance, tokens, each.cached_tokens, most_cached) for each in candidates]


def _judged(instance: InstanceSnapshot, tokens: int, cached_tokens: int, most_cached_tokens: int) -> Judgement:
    cost = instance.step_cost
    to_compute_tokens = tokens - cached_tokens
    first_s = first_token_s(instance, to_compute_tokens)
    next_s = token_s(instance, more=1, tokens=tokens)
    assert cost is not None, "this rule is in force only while the costs of all are known"
    assert first_s is not None
    assert next_s is not None
    again_s = (most_cached_tokens - cached_tokens) * cost.prefill_token_us / 1e6
    if instance.role is not _MIXED:
        for_tokens = not takes_prompts(instance)
        return Judgement((first_s + again_s) // ALIKE_S + LAST * for_tokens, first_s, for_tokens)
    others_s = to_compute_tokens * cost.prefill_token_us / 1e6 * instance.running * instance.slowdown
    total_s = first_s + again_s + NEXT_TOKENS * next_s + SHARE_OF_OTHERS * others_s
    return Judgement(total_s // ALIKE_S, first_s)


SOONEST = DispatchRule(
    "time to a first token",
    _by_time,
    unit="s",
    by_priority=True,
    room_first=True,
    standing_last=True,
    judge=_judge,
    first_by_rank=8,
    fallback=replace(FREENESS, rank=_by_freeness),
)
