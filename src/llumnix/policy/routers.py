"""Dispatch rules of routers that people put before engines, to compare with: as their documents and sources describe
them, with our reports and our index of prefixes instead of their own. None of them moves requests.

    dynamo-kv      NVIDIA Dynamo's KV router: blocks to compute and blocks of all that was sent there, added
    llm-d-prefix   llm-d's scorers with their weights: 3 prefix, 2 queue, 2 memory
    lmetric        LMetric (arXiv 2603.15202): tokens to compute times requests
    cache-aware    SGLang's and vLLM's routers: the longest match if it is long, else the fewest requests (theirs take
                   the smallest cache then, and the fewest requests only where loads are uneven: this one is better)
"""

from __future__ import annotations

from collections.abc import Sequence

from llumnix.policy.baselines import LEAST_REQUESTS
from llumnix.policy.dispatch import Candidate, DispatchRequest, DispatchRule, Judgement
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.virtual_usage import held_blocks

PREFIX_WEIGHT, QUEUE_WEIGHT, MEMORY_WEIGHT = 3.0, 2.0, 2.0
"""llm-d's defaults."""

LONG_MATCH = 0.3
"""Share of the prompt."""

IMBALANCE_REQUESTS, IMBALANCE_FACTOR = 64, 1.5
"""Where the largest load exceeds the smallest by both, prefixes do not count."""

_ALL = 1 << 30
_RANK = LEAST_REQUESTS.rank
"""Of equals the one with the fewest requests."""


def _load(instance: InstanceSnapshot) -> int:
    return instance.running + instance.waiting


def _to_compute(request: DispatchRequest, candidate: Candidate) -> int:
    """Tokens, until the request has its first."""
    return candidate.instance.prefill_tokens + request.prompt_tokens - candidate.cached_tokens


def _as_dynamo(request: DispatchRequest, candidates: Sequence[Candidate]) -> list[Judgement]:
    """Its router counts the blocks of a request from when it sends it there, those that requests share once. We know of
    those that are held, and that what is to be computed will be: a cached beginning counts as held by somebody."""
    costs = []
    for each in candidates:
        to_compute = _to_compute(request, each) / each.instance.block_tokens
        costs.append(to_compute + (held_blocks(each.instance) + to_compute))
    return [Judgement(cost, cost) for cost in costs]


def _as_lmetric(request: DispatchRequest, candidates: Sequence[Candidate]) -> list[Judgement]:
    costs = [float(_to_compute(request, each) * (_load(each.instance) + 1)) for each in candidates]
    return [Judgement(cost, cost) for cost in costs]


def _as_llm_d(request: DispatchRequest, candidates: Sequence[Candidate]) -> list[Judgement]:
    queues = [each.instance.waiting for each in candidates]
    shortest, longest = min(queues), max(queues)
    judged = []
    for each, queue in zip(candidates, queues, strict=True):
        prefix = each.cached_tokens / max(1, request.prompt_tokens)
        idle = 1.0 if longest == shortest else (longest - queue) / (longest - shortest)
        free = each.instance.free_blocks / each.instance.total_blocks
        score = PREFIX_WEIGHT * prefix + QUEUE_WEIGHT * idle + MEMORY_WEIGHT * free
        judged.append(Judgement(-score, score))
    return judged


def _by_match(request: DispatchRequest, candidates: Sequence[Candidate]) -> list[Judgement]:
    loads = [_load(each.instance) for each in candidates]
    largest, smallest = max(loads), min(loads)
    longest = max(each.cached_tokens for each in candidates)
    uneven = largest - smallest > IMBALANCE_REQUESTS and largest > IMBALANCE_FACTOR * smallest
    if uneven or longest <= LONG_MATCH * request.prompt_tokens:
        return [Judgement(load, load) for load in loads]
    return [Judgement(-each.cached_tokens, each.cached_tokens) for each in candidates]


DYNAMO_KV = DispatchRule("blocks to compute and held", _RANK, judge=_as_dynamo, first_by_rank=_ALL)
LLM_D_PREFIX = DispatchRule("score", _RANK, more_is_better=True, judge=_as_llm_d, first_by_rank=_ALL)
LMETRIC = DispatchRule("tokens to compute times requests", _RANK, judge=_as_lmetric, first_by_rank=_ALL)
CACHE_AWARE = DispatchRule("match or load", _RANK, judge=_by_match, first_by_rank=_ALL)
