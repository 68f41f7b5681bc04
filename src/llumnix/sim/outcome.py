"""What a simulated run leaves behind, and the records made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from llumnix.control.scheduler_events import DrainReport
from llumnix.report.records import InstanceRecord, MigrationRecord, Records, RequestRecord
from llumnix.sim.engine.request import SimRequest
from llumnix.types import Priority


@dataclass(slots=True)
class InstanceLife:
    """When an instance was paid for: from the order to start it to its end."""

    instance: str
    ordered_s: float
    ended_s: float | None = None


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One run. `requests` are in order of arrival and all have ended."""

    requests: list[SimRequest]
    migrations: list[MigrationRecord] = field(default_factory=list)
    samples: list[InstanceRecord] = field(default_factory=list)
    lives: list[InstanceLife] = field(default_factory=list)
    drains: list[DrainReport] = field(default_factory=list)
    """How each went, by instance."""
    fragmentation: list[tuple[float, float]] = field(default_factory=list)
    """(time, share of all memory): free in sum, while a request at the head of a queue finds too little in one
    piece. At most what those requests ask for."""
    end_s: float = 0.0
    events: int = 0
    """Events that the kernel ran: the measure of the work that was done."""

    @property
    def mean_instances(self) -> float:
        """Instances paid for, averaged over time (not over steps)."""
        if self.end_s <= 0:
            return float(len(self.lives))
        paid_s = sum((self.end_s if life.ended_s is None else life.ended_s) - life.ordered_s for life in self.lives)
        return paid_s / self.end_s

    def records(self) -> Records:
        """The same records that a live run writes."""
        return Records(
            requests=[request_record(request) for request in self.requests],
            migrations=self.migrations,
            instances=self.samples,
        )


def request_record(request: SimRequest) -> RequestRecord:
    """One request as its client saw it."""
    done = request.finish_s < inf
    several = done and request.output_tokens > 1
    return RequestRecord(
        id=request.client_id,
        arrival_s=request.arrival_s,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.generated,
        priority=Priority(request.priority),
        ttft_s=request.first_token_s - request.arrival_s if done else None,
        tpot_s=mean_gap_s(request) if several else None,
        latency_s=request.finish_s - request.arrival_s if done else None,
        largest_gap_s=request.largest_gap_s if several else None,
        preemptions=request.preemptions,
        migrations=request.migrations,
        instances=tuple(request.instances),
        error="" if done else _why_not_done(request),
    )


def _why_not_done(request: SimRequest) -> str:
    return "not finished" if request.declined is None else f"refused with {request.declined.status}"


def mean_gap_s(request: SimRequest) -> float:
    """Mean time between two tokens of a finished request; 0 with fewer than two."""
    if request.output_tokens < 2:
        return 0.0
    return (request.last_token_s - request.first_token_s) / (request.output_tokens - 1)
