"""Adaptive roles: watches what is asked of the cluster, and changes roles by that (`policy/role_choice.py`)."""

from __future__ import annotations

from math import exp

from llumnix.control.scheduler_events import RolesAdvised, SetRole
from llumnix.policy.role_choice import Demand, RoleTargets, choose_roles
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot
from llumnix.roles_config import RolesConfig
from llumnix.types import InstanceId

LOOK_S = 2.0
"""Between two looks."""

REMEMBER_S = 10.0
"""What was asked so long ago counts for a third of what is asked now."""

DWELL_S = 5.0
"""After a change, and at first, until the next one: so long it takes to see what came of it."""


class DemandWatch:
    """Tokens and prompts per second, by the counts of reports."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._counts: dict[InstanceId, tuple[int, int, int]] = {}
        self._sums = [0.0, 0.0, 0.0]
        self._weight = 0.0

    def look(self, cluster: ClusterSnapshot) -> Demand:
        """Of an instance that has just come, or has gone, nothing counts: what it had is elsewhere then."""
        counts = {each.id: _counts(each) for each in cluster.instances}
        if self._at is not None and cluster.at > self._at:
            passed_s, known = cluster.at - self._at, counts.keys() & self._counts.keys()
            fades = exp(-passed_s / REMEMBER_S)
            self._weight = self._weight * fades + (1 - fades)
            for place in range(3):
                grown = sum(counts[name][place] - self._counts[name][place] for name in known)
                self._sums[place] = self._sums[place] * fades + (1 - fades) * max(0, grown) / passed_s
        self._at, self._counts = cluster.at, counts
        prompts, prompt_tokens, tokens = (each / self._weight if self._weight else 0.0 for each in self._sums)
        return Demand(prompts_per_s=prompts, prompt_tokens_per_s=prompt_tokens, tokens_per_s=tokens)


def _counts(instance: InstanceSnapshot) -> tuple[int, int, int]:
    """Prompts that came, their tokens (computed, or waiting to be), and tokens that were made."""
    return sum(instance.dispatches_seen), instance.computed_tokens + instance.prefill_tokens, instance.made_tokens


class RoleKeeper:
    def __init__(self, config: RolesConfig) -> None:
        self._carries_out = config.roles == "adaptive"
        self._targets = RoleTargets(ttft_s=config.ttft_target_ms / 1e3, tpot_s=config.tpot_target_s)
        self._watch = DemandWatch()
        self._next_look_s = 0.0
        self._changed_s: float | None = None
        self._advised = ""

    def is_due(self, at: float) -> bool:
        """To be asked in every round."""
        return at >= self._next_look_s

    def look(self, cluster: ClusterSnapshot) -> list[SetRole | RolesAdvised]:
        """To be called when it is due."""
        if not cluster.instances:
            return []
        self._next_look_s = cluster.at + LOOK_S
        demand = self._watch.look(cluster)
        if self._changed_s is None:
            self._changed_s = cluster.at
        if cluster.at < self._changed_s + DWELL_S:
            return []
        choice = choose_roles(cluster, demand, self._targets)
        if choice is None:
            self._advised = ""
            return []
        self._changed_s = cluster.at
        if self._carries_out:
            return [SetRole(instance=name, role=role, reason=choice.reason) for name, role in choice.changes.items()]
        changes = ", ".join(f"{name} {role}" for name, role in choice.changes.items())
        if changes == self._advised:
            return []
        self._advised = changes
        return [RolesAdvised(changes=choice.changes, reason=choice.reason)]
