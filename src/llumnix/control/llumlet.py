"""The llumlet: Llumnix's part inside an instance (paper section 4.1), as a machine without I/O.

Holds the migrations of one instance, in and out, one machine each (control/migration_source.py,
control/migration_target.py), and routes events to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llumnix.config import MigrationConfig
from llumnix.control.commands import AnyCommand
from llumnix.control.events import AnyEvent
from llumnix.policy.snapshot import RequestSnapshot
from llumnix.policy.victim import VictimChoice, VictimQuery
from llumnix.types import InstanceId, RequestId

ChooseVictims = Callable[[Iterable[RequestSnapshot], VictimQuery], VictimChoice]


class Llumlet:
    """The only object that an instance's driver holds.

    `choose_victims` is `policy.victim.choose_victims` with the policy's rule; `cooldown_s` is what it is asked with.
    """

    def __init__(
        self, instance: InstanceId, config: MigrationConfig, choose_victims: ChooseVictims, cooldown_s: float
    ) -> None:
        raise NotImplementedError

    def handle(self, event: AnyEvent) -> list[AnyCommand]:
        """Raises IllegalEvent, with the story of the request, if the driver broke its contract; no state changed then."""
        raise NotImplementedError

    @property
    def incoming(self) -> int:
        """Migrations on their way in (for the load report)."""
        raise NotImplementedError

    @property
    def outgoing(self) -> int:
        raise NotImplementedError

    def is_settled(self, request: RequestId) -> bool:
        """False while it is on its way in or out, or came so recently that the front end has not confirmed it: it can
        not be moved then."""
        raise NotImplementedError
