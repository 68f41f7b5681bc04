"""The policies by name. A new policy is one more `Policy` value here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llumnix.config import PolicyConfig
from llumnix.errors import UsageError
from llumnix.policy.baselines import LEAST_REQUESTS, ROUND_ROBIN, VLLM_DP
from llumnix.policy.defragmentation import pair_and_make_room
from llumnix.policy.dispatch import PAPER_FREENESS, DispatchRule
from llumnix.policy.pairing import PairingRule, PairingTerms
from llumnix.policy.pairing_paper import pair_by_rank
from llumnix.policy.routers import CACHE_AWARE, DYNAMO_KV, LLM_D_PREFIX, LMETRIC
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.soonest import SOONEST
from llumnix.policy.victim import CHEAPEST, LAST_COME, LAST_COME_OF_ALL, VictimRule
from llumnix.policy.virtual_usage import migration_freeness, paper_migration_freeness

MIGRATE_FREENESS = 3.0
"""Below it an instance gives requests away, above it one takes some, where nothing else is configured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How requests are placed, which instances exchange requests, and which requests those are."""

    help: str
    dispatch: DispatchRule
    pairing: PairingRule | None = None
    """None: the policy never moves a request, not even off a draining instance, which empties by itself."""
    freeness: Callable[[InstanceSnapshot, int | None], float] = migration_freeness
    """What pairing goes by, with the target load of an instance with high-priority requests."""
    victim: VictimRule = CHEAPEST
    relief: bool = False
    """An instance that is about to run out of blocks gives a request away at once (`policy/relief.py`)."""
    pace: bool = False
    """Who runs where tokens come slowly goes to where they come faster (`policy/straggling.py`)."""
    roles: bool = False
    """Instances may be preferred for prompts, or for tokens (`policy/roles.py`)."""
    small_first: bool = False
    """Who needs little of an instance's memory waits there for less long (`policy/waiting_order.py`)."""
    priorities: bool = True
    """High-priority requests get headroom; otherwise they are requests like any other."""

    def priority_target_tokens(self, config: PolicyConfig) -> int | None:
        """The target load of an instance with high-priority requests; None if there is no such thing."""
        return config.priority_target_tokens if self.priorities else None

    def looks_at_prefixes(self, config: PolicyConfig) -> bool:
        """Whether front ends want to know which prefixes instances have cached."""
        return config.prefix and self.dispatch.judge is not None

    def pairing_terms(self, config: PolicyConfig) -> PairingTerms:
        """The thresholds in force. The one for taking is never below the one for giving."""
        out_freeness = _first(config.migrate_out_freeness, MIGRATE_FREENESS)
        return PairingTerms(
            migrate_out_freeness=out_freeness,
            migrate_in_freeness=max(out_freeness, _first(config.migrate_in_freeness, MIGRATE_FREENESS)),
            max_migrations=config.max_migrations_per_instance,
            priority_target_tokens=self.priority_target_tokens(config),
            pace_gain=config.pace_gain if self.pace else 0.0,
        )


POLICIES: dict[str, Policy] = {
    "llumnix": Policy(
        help="soonest first token where there is room, cached prefixes counted; live migration with a test of benefit, "
        "de-fragmentation, priorities (default)",
        dispatch=SOONEST,
        pairing=pair_and_make_room,
        relief=True,
        pace=True,
        roles=True,
        small_first=True,
    ),
    "llumnix-paper": Policy(
        help="Llumnix as in the paper's experiments",
        dispatch=PAPER_FREENESS,
        pairing=pair_by_rank,
        freeness=paper_migration_freeness,
        victim=LAST_COME,
    ),
    "llumnix-base": Policy(
        help="llumnix-paper without priorities",
        dispatch=PAPER_FREENESS,
        pairing=pair_by_rank,
        freeness=paper_migration_freeness,
        victim=LAST_COME_OF_ALL,
        priorities=False,
    ),
    "infaas++": Policy(
        help="freest instance by memory, the queue included; no migration, no priorities",
        dispatch=PAPER_FREENESS,
        priorities=False,
    ),
    "round-robin": Policy(help="one after the other; no migration", dispatch=ROUND_ROBIN, priorities=False),
    "least-requests": Policy(help="fewest requests; no migration", dispatch=LEAST_REQUESTS, priorities=False),
    "vllm-dp": Policy(
        help="vLLM's data-parallel load balancing: lowest 4 · waiting + running; no migration",
        dispatch=VLLM_DP,
        priorities=False,
    ),
    "dynamo-kv": Policy(
        help="NVIDIA Dynamo's: fewest blocks to compute and of all that was sent there; no migration",
        dispatch=DYNAMO_KV,
        priorities=False,
    ),
    "llm-d-prefix": Policy(
        help="llm-d's: prefix, queue and memory, weighted 3, 2, 2; no migration",
        dispatch=LLM_D_PREFIX,
        priorities=False,
    ),
    "lmetric": Policy(help="tokens to compute times requests; no migration", dispatch=LMETRIC, priorities=False),
    "cache-aware": Policy(
        help="SGLang's: longest prefix match, else fewest requests (there: smallest cache); no migration",
        dispatch=CACHE_AWARE,
        priorities=False,
    ),
}


def find_policy(name: str) -> Policy:
    """Raises UsageError, which lists the names, for an unknown one."""
    try:
        return POLICIES[name]
    except KeyError:
        raise UsageError(f"--policy must be one of {', '.join(POLICIES)}, not {name}.") from None


def _first(configured: float | None, default: float) -> float:
    return default if configured is None else configured
