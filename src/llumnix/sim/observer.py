"""What is written down of a simulated run while it goes on: migrations, and the instances' load over time."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from llumnix.control.orders import MoveOutcome
from llumnix.policy.defragmentation import missing_blocks
from llumnix.report.records import instance_record, migration_record
from llumnix.sim.engine.request import Handover, SimRequest
from llumnix.sim.instance import SimInstance
from llumnix.sim.outcome import Outcome
from llumnix.types import InstanceId, by_number


class RunObserver:
    """Fills the lists of `outcome`."""

    def __init__(self, outcome: Outcome, priority_target_tokens: int | None) -> None:
        self._outcome = outcome
        self._target_tokens = priority_target_tokens
        self._handovers: list[Handover | None] = []
        """One per row of the migrations: what the client felt is known only later."""

    def migration_ended(self, at_s: float, request: SimRequest, outcome: MoveOutcome) -> None:
        request.moved(at_s, outcome)
        handover = request.handover if outcome.ok else None
        self._handovers.append(handover)
        record = migration_record(at_s, request.client_id, outcome)
        handover_ms = None if handover is None else handover.out_s * 1e3
        self._outcome.migrations.append(replace(record, handover_ms=handover_ms))

    def sample(self, at_s: float, instances: Mapping[InstanceId, SimInstance]) -> None:
        """A row for each instance, and how fragmented their memory is."""
        free = short = total = 0
        for name in sorted(instances, key=by_number):
            seen = instances[name].reports.look()
            free += seen.free_blocks
            total += seen.total_blocks
            if missing_blocks(seen):
                short += seen.head_of_line_blocks
            self._outcome.samples.append(instance_record(at_s, seen, self._target_tokens))
        self._outcome.fragmentation.append((at_s, min(free, short) / total if total else 0.0))

    def finish(self) -> None:
        """The run is over: every downtime is known."""
        self._outcome.migrations = [
            replace(row, downtime_ms=handover.downtime_s * 1e3)
            if handover is not None and handover.downtime_s is not None
            else row
            for row, handover in zip(self._outcome.migrations, self._handovers, strict=True)
        ]
