"""The knobs of tokens that come in time (docs/understand/roles.md)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from llumnix.errors import UsageError
from llumnix.knob import knob


@dataclass(frozen=True, slots=True, kw_only=True)
class RolesConfig:
    """Tokens in time: a target, and what instances do for it."""

    tpot_target_ms: float = knob(
        0.0,
        "Milliseconds between two tokens of a request: an instance where requests decode computes at most as many "
        "tokens of prompts per step as leave it in time (0: no target).",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.tpot_target_ms < inf:
            raise UsageError("--tpot-target-ms must be a finite number and not negative.")

    @property
    def tpot_target_s(self) -> float:
        """0: none."""
        return self.tpot_target_ms / 1e3
