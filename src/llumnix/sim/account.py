"""What a simulated instance knows and counts of itself, for its load report and for its body."""

from __future__ import annotations

from dataclasses import dataclass

from llumnix.control.llumlet import Llumlet
from llumnix.types import InstanceId, InstanceState, Role


@dataclass(slots=True)
class Account:
    """Owned by the instance."""

    id: InstanceId
    alive: bool = True
    state: InstanceState = InstanceState.RUNNING
    drain_keep: bool = False
    role: Role = Role.MIXED
    llumlet: Llumlet | None = None
    """None as long as nothing concerned it: most of a large cluster never migrates."""
    dispatches_seen: int = 0
    ended: int = 0
    migrations_in: int = 0
    migrations_out: int = 0
    preemptions_avoided: int = 0
    recompute_tokens_saved: int = 0
