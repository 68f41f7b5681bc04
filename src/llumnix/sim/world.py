"""What a simulated instance needs from the cluster around it."""

from __future__ import annotations

from typing import Protocol

from llumnix.config import ClusterConfig
from llumnix.control.llumlet import Llumlet
from llumnix.control.messages import AnyMessage, AnyNotice, Doubt
from llumnix.control.orders import MoveOutcome
from llumnix.control.prefix_table import PrefixNews
from llumnix.policy.snapshot import InstanceSnapshot, StepCost
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.kernel import Kernel
from llumnix.sim.network import CopyEnded
from llumnix.sim.profiles.cost_model import Profile
from llumnix.types import Epoch, InstanceId, RequestId


class World(Protocol):
    """The cluster as an instance sees it."""

    kernel: Kernel
    profile: Profile
    cluster: ClusterConfig
    paper_body: bool
    """As in the paper's artifact, reports describe the start of a step and go out with its tokens, and nobody knows how
    many tokens a request has still to make."""
    looks_each_step: bool
    """Instances look at themselves after each step, not only when something has changed."""
    reads_between_steps: bool
    """What comes while a step is in flight is read when it has ended."""
    tpot_target_s: float
    """Instances leave so much between two tokens, if they can; 0: no target."""
    relief_steps: int
    """How many decode steps ahead an instance looks for a shortage of blocks; 0: not at all."""

    @property
    def size(self) -> int:
        """Instances that there are or will be, as all of them know."""
        ...

    def step_cost(self, instance: InstanceId) -> StepCost:
        """What its reports say of its steps."""
        ...

    def new_llumlet(self, instance: InstanceId) -> Llumlet: ...
    def request(self, request: RequestId) -> SimRequest: ...
    def send(self, to: InstanceId, message: AnyMessage) -> None: ...
    def ask_front_end(self, doubt: Doubt) -> None: ...
    def noticed(self, notice: AnyNotice) -> None: ...
    def is_fenced(self, request: RequestId, epoch: Epoch) -> bool: ...
    def move_answered(self, outcome: MoveOutcome) -> None: ...
    def copy(self, source: InstanceId, target: InstanceId, blocks: int, done: CopyEnded) -> bool: ...
    def reported(self, snapshot: InstanceSnapshot, late_s: float) -> None: ...
    def prefixes_told(self, instance: InstanceId, news: PrefixNews) -> None: ...
    def finished(self, request: SimRequest) -> None: ...
    def left(self, request: SimRequest) -> None: ...
