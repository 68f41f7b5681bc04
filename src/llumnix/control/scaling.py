"""When the cluster changes its size: `policy.autoscaling` driven by what the scheduler hears.

`on` carries decisions out; `advise` only remembers and shows them. Both look at the same numbers at the same moments,
so that advice is what would have been done.
"""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

import msgspec

from llumnix.config import ScalingConfig
from llumnix.control.fleet import FleetView
from llumnix.policy.autoscaling import ScaleIn, ScaleOut, ScalingDecision, ScalingState, Stay, scale
from llumnix.policy.snapshot import ClusterSnapshot
from llumnix.types import InstanceId


class ScalingMode(StrEnum):
    OFF = "off"
    ADVISE = "advise"
    ON = "on"


class ScalingStep(msgspec.Struct, frozen=True, kw_only=True):
    """One decision other than to stay. Either `start` or `drain` is set."""

    at: float
    reason: str
    start: int = 0
    drain: InstanceId | None = None
    carried_out: bool

    @property
    def what(self) -> str:
        return f"start {self.start}" if self.drain is None else f"drain {self.drain}"

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


ADVISE_AGAIN_S = 10.0
"""The same advice is given this often at most."""


class Autoscaler:
    """Asked in every round of the scheduler. `now` is the last look's verdict, `steps` counts what was decided."""

    def __init__(self, config: ScalingConfig, mode: ScalingMode = ScalingMode.ON) -> None:
        self.config = config
        self.mode = mode
        self.now = "the launcher has not said yet what there is"
        self.last: ScalingStep | None = None
        self.starts = 0
        """Instances started (or, in advise mode, that would have been) so far."""
        self.drains = 0
        self._state = ScalingState()

    def look(self, cluster: ClusterSnapshot, fleet: FleetView) -> ScalingStep | None:
        """What to do now; None to stay as it is, or to do as `off` says."""
        if self.mode is ScalingMode.OFF or not fleet.known:
            return None
        if fleet.ending:
            self.now = "the server ends"
            return None
        starting = fleet.starting(heard=len(cluster.instances))
        decision, self._state = scale(cluster, starting, self._state, self.config, fleet.failing, fleet.room)
        self.now = decision.reason
        step = self._step(cluster.at, decision)
        if step is None or self._is_known(step):
            return None
        self.last = step
        self.starts += step.start
        self.drains += step.drain is not None
        return step

    def _is_known(self, step: ScalingStep) -> bool:
        """Advice that was given a moment ago. What is carried out changes the numbers, so it is not decided twice."""
        last = self.last
        if step.carried_out or last is None or step.at >= last.at + max(ADVISE_AGAIN_S, self.config.scale_window_s):
            return False
        return (step.start, step.drain) == (last.start, last.drain)

    def _step(self, at: float, decision: ScalingDecision) -> ScalingStep | None:
        carried_out = self.mode is ScalingMode.ON
        match decision:
            case ScaleOut():
                return ScalingStep(at=at, reason=decision.reason, start=decision.count, carried_out=carried_out)
            case ScaleIn():
                return ScalingStep(at=at, reason=decision.reason, drain=decision.instance, carried_out=carried_out)
            case Stay():
                return None
            case _:
                assert_never(decision)
