"""The requests of `placement.py`, the machines that they meet, and at which rates."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from math import inf

from frame.parts import part_of

from llumnix.sim.driver import sim_requests
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.profiles.cost_model import Profile
from llumnix.sim.profiles.file import load_profile
from llumnix.workload.workload import Workload

MOONCAKE = "mooncake-conv"
UNIT_TOKENS = 512
CUSTOMERS, SHARED_UNITS, OWN_TOKENS = 150, 11, 1500
INSTANCES = 8
BLOCKS = {"mooncake": 24_000, "contexts": 9000}
"""Of an instance's KV cache."""

LOADS = (0.5, 0.7, 0.85, 0.95)
"""Of the capacity of the best rule that is blind to prefixes."""

CAPACITY = {"mooncake": 4.1, "contexts": 10.4}
"""Requests per second, as `placement.py --find-capacity` found it (4.10 and 10.44)."""

PLAIN = {
    "ShareGPT": 8.0, "BurstGPT": 9.0, "S-S": 40.0, "M-M": 8.4, "L-L": 3.0, "S-L": 4.2, "L-S": 14.0,
    "azure-conv": 7.6, "azure-code": 2.5,
}  # fmt: skip
"""Traces without prefixes, and their rates near saturation on 16 `a10-llama-7b`."""


def rate_at(trace: str, share: float) -> float:
    """Requests per second at this share of the capacity."""
    return round(share * CAPACITY[trace], 3)


def grouped_queries(blocks: int) -> Profile:
    """The A100 with an 8B model: 2 MiB a block, 0.09 µs for each token of context."""
    profile = load_profile("a100-llama-7b")
    return replace(
        profile,
        memory=replace(profile.memory, total_blocks=blocks, block_bytes=2 << 20),
        decode=replace(profile.decode, per_context_token_ms=0.00009),
    )


def prefixed(trace: str, rate: float, seed: int, requests: int) -> list[SimRequest]:
    return (conversations if trace == "mooncake" else contexts)(rate, seed, requests)


def conversations(rate: float, seed: int, requests: int) -> list[SimRequest]:
    """The `seed`-th part of Mooncake's trace, in its own time, squeezed to the rate."""
    return sim_requests(Workload(name="mooncake", requests=part_of(MOONCAKE, seed, requests, rate)), UNIT_TOKENS)


def contexts(rate: float, seed: int, requests: int) -> list[SimRequest]:
    """Each asks something of its own behind one of many long contexts (llm-d's published case)."""
    rng = random.Random(seed)
    at_s = 0.0
    rows = []
    for index in range(requests):
        at_s += rng.expovariate(rate)
        customer = rng.randrange(CUSTOMERS)
        hashes = tuple(customer * SHARED_UNITS + unit for unit in range(SHARED_UNITS))
        tokens = UNIT_TOKENS * SHARED_UNITS + rng.randint(OWN_TOKENS // 2, 3 * OWN_TOKENS // 2)
        rows.append(SimRequest(index, at_s, tokens, 1 + int(rng.expovariate(1 / 150)), hashes=hashes))
    return rows


def hits_of_one_cache(load: Sequence[SimRequest], most_units: float = inf) -> list[int]:
    """Tokens of each prompt that one cache for all instances would have, were it so large: what was used longest ago
    goes first, of a prompt its end, and nothing else takes memory."""
    cache: OrderedDict[int, None] = OrderedDict()
    hit_tokens = []
    for request in load:
        units = next((n for n, unit in enumerate(request.hashes) if unit not in cache), len(request.hashes))
        hit_tokens.append(min(units * UNIT_TOKENS, request.prompt_tokens - 1))
        for unit in reversed(request.hashes):
            cache[unit] = None
            cache.move_to_end(unit)
        while len(cache) > most_units:
            cache.popitem(last=False)
    return hit_tokens


def units_in_all(trace: str) -> int:
    """Units that the memory of all instances can hold."""
    return INSTANCES * BLOCKS[trace] * grouped_queries(BLOCKS[trace]).memory.block_tokens // UNIT_TOKENS
