"""Dispatch rules of the systems that Llumnix is compared with. None of them looks at the free memory that
a request will need, but for INFaaS++, which is the paper's freeness without priorities (see the catalogue)."""

from __future__ import annotations

from llumnix.policy.dispatch import DispatchRank, DispatchRule
from llumnix.policy.snapshot import InstanceSnapshot

VLLM_WAITING_WEIGHT = 4
"""A waiting request weighs as much as this many running ones in vLLM's own data-parallel load balancer
(`vllm/v1/engine/core_client.py`)."""


def _by_turn(
    instance: InstanceSnapshot, high: bool, last_turn: int, priority_target_tokens: int | None
) -> DispatchRank:
    """Whoever was served longest ago is next; a new instance is next once, and is not flooded to catch up."""
    return last_turn, 0


def _by_requests(
    instance: InstanceSnapshot, high: bool, last_turn: int, priority_target_tokens: int | None
) -> DispatchRank:
    return instance.running + instance.waiting, 0


def _by_vllm_score(
    instance: InstanceSnapshot, high: bool, last_turn: int, priority_target_tokens: int | None
) -> DispatchRank:
    return VLLM_WAITING_WEIGHT * instance.waiting + instance.running, 0


ROUND_ROBIN = DispatchRule("turn", _by_turn)
LEAST_REQUESTS = DispatchRule("number of requests", _by_requests)
VLLM_DP = DispatchRule("score of 4 · waiting + running", _by_vllm_score)
