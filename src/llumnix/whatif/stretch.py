"""The part of a recorded run that can be simulated: the longest in which the same instances served."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from llumnix.errors import UsageError
from llumnix.record.form import RecordedRequest
from llumnix.record.read import RecordedRun
from llumnix.report.records import InstanceRecord
from llumnix.types import InstanceState
from llumnix.workload.trace import request_id
from llumnix.workload.workload import Workload, WorkloadRequest

FEWEST_REQUESTS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    begin_s: float
    end_s: float
    instances: tuple[str, ...]
    requests: tuple[RecordedRequest, ...]
    """That arrived in it and made a token, by arrival. They are named by that: clients may give an id twice."""
    silent: int
    """That made none: they failed, or their clients left before."""
    left_out: int
    """That were before these, on the same instances."""

    @property
    def failed(self) -> int:
        return sum(bool(request.error) for request in self.requests)

    def workload(self) -> Workload:
        """The same requests to be simulated. One that failed or was left had its memory until then."""
        return Workload(
            name="recorded",
            requests=tuple(
                WorkloadRequest(
                    id=request.id,
                    arrival_s=request.arrival_s - self.begin_s,
                    prompt_tokens=max(1, request.prompt_tokens),
                    output_tokens=request.output_tokens,
                    priority=request.priority,
                    block_hashes=request.block_hashes,
                    block_tokens=request.block_tokens,
                )
                for request in self.requests
            ),
        )


def longest_stretch(run: RecordedRun, most_requests: int | None = None) -> Stretch:
    """With more than `most_requests` its end. Raises UsageError if there are too few requests in it."""
    begin_s, end_s, instances = max(_stretches(run.instances), key=lambda each: each[1] - each[0], default=(0, 0, ()))
    inside = [request for request in run.requests if begin_s <= request.arrival_s <= end_s]
    left_out = max(0, len(inside) - most_requests) if most_requests else 0
    if left_out:
        inside = inside[left_out:]
        begin_s = inside[0].arrival_s
    with_tokens = [request for request in inside if request.output_tokens]
    if len(with_tokens) < FEWEST_REQUESTS:
        raise UsageError(
            f"{run.folder} has {len(with_tokens)} requests that made tokens while the same instances served, and "
            f"{FEWEST_REQUESTS} are the fewest of which something can be said."
        )
    return Stretch(
        begin_s=begin_s,
        end_s=end_s,
        instances=instances,
        requests=tuple(replace(request, id=request_id(index)) for index, request in enumerate(with_tokens)),
        silent=len(inside) - len(with_tokens),
        left_out=left_out,
    )


def _stretches(rows: Sequence[InstanceRecord]) -> Iterator[tuple[float, float, tuple[str, ...]]]:
    """Begin, end and instances; rows are by time, those of one look at the same."""
    looks: dict[float, list[InstanceRecord]] = {}
    for row in rows:
        looks.setdefault(row.at_s, []).append(row)
    begin_s, until_s, serving = 0.0, 0.0, frozenset[str]()
    for at_s, now in _serving(looks):
        if now != serving:
            if serving:
                yield begin_s, until_s, tuple(sorted(serving))
            begin_s, serving = at_s, now
        until_s = at_s
    if serving:
        yield begin_s, until_s, tuple(sorted(serving))


def _serving(looks: Mapping[float, Sequence[InstanceRecord]]) -> Iterator[tuple[float, frozenset[str]]]:
    """At each look. A front end that was restarted knows nobody at first, and calls all of them starting: who served
    before, and does so later, served meanwhile."""
    last_s = {row.instance: at_s for at_s, look in looks.items() for row in look if row.state is InstanceState.RUNNING}
    now: set[str] = set()
    for at_s, look in looks.items():
        now = {name for name in now if last_s[name] >= at_s}
        now -= {row.instance for row in look if row.state is not InstanceState.STARTING}
        now |= {row.instance for row in look if row.state is InstanceState.RUNNING}
        yield at_s, frozenset(now)
