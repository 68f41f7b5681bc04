"""What is asked of them: below, near and (far) beyond saturation, steady, in bursts, long, and with contexts in common.

Rates are for four engines that pace themselves (20 ms + 0.2 ms a token) with 96 blocks of 32 tokens each; for more they
are multiplied, for slower ones divided. Memory is what runs out first there, as with real models.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
from frame.verdict import Goal, at_least, at_most

from llumnix.workload.workload import Workload, load_workload

SIZED_FOR, PACED_AT_MS = 4, 20.0
"""Engines, and their steps."""

NEVER_WORSE = {name: at_most(1.02) for name in ("TPOT P50", "TPOT P99", "latency P50", "latency mean", "latency P99")}
"""Of ours over the best of theirs."""

NEAR = NEVER_WORSE | {"TTFT P99": at_most(0.5), "TTFT mean": at_most(0.67)}
NOTICED_BY_NOBODY = {"gap P99": at_most(0.5)}
"""Where an engine is killed or taken away meanwhile. Of clients whose request failed, see `figures_of`."""
BEYOND = {"goodput": at_least(1.5)}
"""Of ours with classes: what cannot be served in time is not begun."""


class Load(msgspec.Struct, frozen=True):
    workload: str
    """With `{rate}`."""
    rate: float
    goals: dict[str, Goal] = {}
    goals_with_classes: dict[str, Goal] = {}
    contexts: int = 0
    """So many different beginnings, one of which each prompt has; 0: nothing in common."""


_SHORT = "prompt=exp100,output=exp300,cap=900"
LOADS = {
    "below, steady": Load(f"poisson:rate={{rate}},{_SHORT}", 1.6, NEVER_WORSE),
    "below, bursts": Load(f"gamma:rate={{rate}},cv=4,{_SHORT}", 1.6, NEVER_WORSE),
    "near, steady": Load(f"poisson:rate={{rate}},{_SHORT}", 2.8, NEAR),
    "near, bursts": Load(f"gamma:rate={{rate}},cv=4,{_SHORT}", 2.8, NEAR),
    "beyond, bursts": Load(f"gamma:rate={{rate}},cv=4,{_SHORT}", 4.0),
    "twice, bursts": Load(f"gamma:rate={{rate}},cv=4,{_SHORT}", 8.0, goals_with_classes=BEYOND),
    "long outputs": Load("gamma:rate={rate},cv=2,prompt=exp100,output=exp600,cap=1500", 1.3, NEVER_WORSE),
    "shared contexts": Load("gamma:rate={rate},cv=2,prompt=exp60,output=exp120,cap=300", 4.0, NEVER_WORSE, contexts=16),
}

_CONTEXT_TOKENS, _CONTEXT_BLOCK = 256, 32


def make(load: Load, engines: int, requests: int, seed: int, contents: int, step_ms: float = PACED_AT_MS) -> Workload:
    """The load's requests; `contents` is the seed of what prompts say, so that no engine knows one from another run."""
    rate = load.rate * engines / SIZED_FOR * PACED_AT_MS / step_ms
    text = f"{load.workload.format(rate=rate)},requests={requests}"
    workload = load_workload(text, seed=seed)
    if load.contexts:
        workload = _with_contexts(workload, load.contexts)
    return replace(workload, seed=contents)


def _with_contexts(workload: Workload, contexts: int) -> Workload:
    """Each prompt behind one of them; a few are asked for most often (Zipf's law)."""
    random = np.random.default_rng(workload.seed)
    shares = 1 / np.arange(1, contexts + 1)
    chosen = random.choice(contexts, len(workload.requests), p=shares / shares.sum())
    blocks = _CONTEXT_TOKENS // _CONTEXT_BLOCK
    requests = tuple(
        msgspec.structs.replace(
            request,
            prompt_tokens=_CONTEXT_TOKENS + request.prompt_tokens,
            block_hashes=tuple(range(context * blocks, (context + 1) * blocks)),
            block_tokens=_CONTEXT_BLOCK,
        )
        for request, context in zip(workload.requests, chosen.tolist(), strict=True)
    )
    return replace(workload, requests=requests)
