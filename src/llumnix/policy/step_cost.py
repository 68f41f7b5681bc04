"""How soon: what an instance's next steps, and the first token of a request, will take.

Freeness says whether a request fits; this says when it will have its first token, and how long each further one takes.
Both follow from what a step of the instance costs (`StepCost`, fitted by `control/step_fit.py`), what it has still to
compute before its queue has first tokens, and the batch that every step carries along; and from how much slower than
that its latest steps were. A dispatch asks a dozen
instances, so `step_s` is written out where only a part of it is needed. And the other way round: how much of prompts
fits into a step that is to end in time.
"""

from __future__ import annotations

from llumnix.policy.snapshot import InstanceSnapshot, StepCost

FEWEST_PROMPT_TOKENS = 64
"""In a step, whatever the target: where decoding alone takes longer than that, prompts still go on."""

PLANNED = 0.9
"""Of a target for the time between two tokens, what steps with prompts may take. The rest is for steps that take longer
than believed and, where requests make few tokens, for those that come later: the first ones, before they move."""


def step_s(cost: StepCost, prefill_tokens: int, decoding: int, context_tokens: int) -> float:
    """Seconds of one step that computes so many tokens of prompts, and a token for each of `decoding` requests, which
    are `context_tokens` long together."""
    us = cost.prefill_token_us * prefill_tokens + cost.request_us * decoding + cost.context_token_us * context_tokens
    return cost.fixed_ms / 1e3 + us / 1e6


def prompt_tokens(cost: StepCost | None, decoding: int, context_tokens: int, target_s: float, most: int) -> int:
    """Tokens of prompts that the next step of an instance may compute, at most `most`, so that those who decode there
    wait little enough for their next token that one in `target_s` comes of it; 0: as long as it takes. Where nobody
    decodes, and while nothing is known of the instance's steps, nothing is held back."""
    if not target_s or cost is None or not decoding or not cost.prefill_token_us:
        return most
    left_s = PLANNED * target_s - step_s(cost, 0, decoding, context_tokens)
    return min(most, max(FEWEST_PROMPT_TOKENS, int(left_s * 1e6 / cost.prefill_token_us)))


def next_step_s(instance: InstanceSnapshot) -> float | None:
    """Seconds of its next step, with as much of the prompts as that computes; None while nothing is known."""
    if instance.step_cost is None:
        return None
    prompts = min(instance.prefill_tokens, max(0, instance.step_tokens - instance.decoding))
    return instance.slowdown * step_s(instance.step_cost, prompts, instance.decoding, instance.context_tokens)


def token_s(instance: InstanceSnapshot, more: int = 0, tokens: int = 0) -> float | None:
    """Seconds between two tokens of a request there, once all that it has decode, and `more` requests of `tokens`
    tokens in all with them; None while nothing is known of its steps."""
    cost = instance.step_cost
    if cost is None:
        return None
    us = cost.request_us * (instance.running + instance.waiting + more)
    us += cost.context_token_us * (instance.context_tokens + instance.prefill_tokens + tokens)
    return instance.slowdown * (cost.fixed_ms / 1e3 + us / 1e6)


def first_token_s(instance: InstanceSnapshot, tokens: int) -> float | None:
    """Seconds until a request that comes now, with `tokens` tokens to compute, has its first token; None while nothing
    is known of the instance's steps.

    Everything that waits there is computed before it, in as many steps as the token budget takes, and each of them
    carries the batch along. That the request may have to wait for memory is not in it."""
    cost = instance.step_cost
    if cost is None:
        return None
    prompts = instance.prefill_tokens + tokens
    budget = max(1, instance.step_tokens - instance.decoding)  # less than one is left where decoding takes all
    steps = max(1, -(-prompts // budget)) if instance.step_tokens else 1
    batch_us = cost.request_us * instance.decoding + cost.context_token_us * instance.context_tokens
    all_steps_s = steps * (cost.fixed_ms / 1e3 + batch_us / 1e6) + prompts * cost.prefill_token_us / 1e6
    return instance.slowdown * all_steps_s
