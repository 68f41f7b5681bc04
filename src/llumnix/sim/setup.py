"""Everything that a simulated run depends on, beside its requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig, ScalingConfig
from llumnix.errors import UsageError
from llumnix.policy.classes import Classes
from llumnix.sim.faults import Fault
from llumnix.sim.profiles.cost_model import Profile
from llumnix.types import InstanceId


@dataclass(frozen=True, slots=True)
class PlannedMove:
    """A migration that is asked for by hand, as with `llumnix migrate`; instances by number."""

    at_s: float
    request: str
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class PlannedDrain:
    """An instance, by number, that is to be emptied and stopped, as with `llumnix drain`."""

    at_s: float
    instance: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSetup:
    """Everything that a run depends on, beside its requests."""

    instances: int
    profile: Profile
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    migration: MigrationConfig = field(default_factory=MigrationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    faults: tuple[Fault, ...] = ()
    seed: int = 0
    """Of the faults' victims; arrivals and lengths are the workload's."""
    sample_interval_s: float = 0.0
    """Seconds between two rows of the instances' time series; 0 for none."""
    unit_tokens: int = 0
    """Tokens behind one hash of a request's prefix, whole blocks; 0 for no prefix cache."""
    restart_instances: bool = True
    scaling: ScalingConfig | None = None
    step_cost_error: float = 0.0
    """Standard deviation of the logarithm by which each instance is wrong about what its steps cost."""
    looks_each_step: bool = False
    """Busy instances look at their load after each step and keep quiet of what does not matter, as live
    (`ClusterConfig.quiet_report_interval_s`); otherwise, for speed, they look when something has changed."""
    reads_between_steps: bool = False
    """Instances read their mail, and look at their load, between two steps only, as live; otherwise, for speed, at once
    (what follows from it is carried out between two steps all the same)."""
    place_on: int | None = None
    """Number of the instance that gets every request, whatever the policy says (to measure a migration)."""
    moves: tuple[PlannedMove, ...] = ()
    drains: tuple[PlannedDrain, ...] = ()
    classes: Classes | None = None
    """Requests are admitted and held by these, each as `SimRequest.tenant`'s; None: all go to an instance at once."""
    paper_body: bool = False
    """Everything around the policy as in the paper's artifact: a report is one step old when it comes, a request that
    was sent is not charged until a report counts it, and scaling follows its rule. Otherwise as live: reports are
    pushed on change, dispatch books what it sends, and scaling is `policy.autoscaling`."""

    def __post_init__(self) -> None:
        self.policy.roles.check(self.instances)
        if self.policy.roles.tpot_target_ms and self.profile.scheduler.kind != "vllm-1":
            name = self.profile.name
            raise UsageError(
                f"--tpot-target-ms is for engines that compute prompts in parts, and those of {name} do not."
            )


def instance_name(number: int) -> InstanceId:
    """Id of the instance that was ordered as `number`-th, from 0."""
    return InstanceId(f"i{number:04d}")
