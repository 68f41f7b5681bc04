"""Goodput below, at and beyond capacity, with `--classes` and without; whether tenants are served alike (simulated).

    python benchmarks/admission.py
    python benchmarks/admission.py --seeds 1 --requests 1500      a first look

azure-conv on 8 × `a100-llama-7b`; a request is good if its first token comes within 1 s and the others within 100 ms
each, on average. Capacity (`--capacity`) is the rate at which, everybody let in, nine of ten requests are still good.
Each seed is another part of the trace. Goodput is good requests per second of arrivals.

*Wrongly refused*: of the requests that were declined, one in fifteen is let in all the same in a second run, and waits
for its turn however long that takes. That run is soon another one than the first. So those count that the rule would
decline in it, too: of these, the ones that are good were refused wrongly.

*Where memory runs out first*: ShareGPT at twice what 8 × `a10-llama-7b` can do, where engines would let in whatever
fits and preempt it soon after.

*Served alike*: eight tenants, the first of whom asks five times as often as the last, all for more than their part;
Jain's index of the work that was done for each while all of them waited.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from unittest import mock

import msgspec
import numpy as np
from frame.arguments import at_least_one, positive
from frame.parts import refuse_repeats
from frame.verdict import Figure, at_least, at_most, conclude
from policy_comparison import workload

from llumnix.config import PolicyConfig
from llumnix.control.front_end import FrontEndMachine
from llumnix.control.front_end_events import Arrived, Reported
from llumnix.control.held_requests import HeldRequest, QueueName
from llumnix.control.openings import DispatchOpenings, Opening, Openings
from llumnix.control.waiting_room import OUTPUT_WEIGHT, Ask, Called, GaveUp, WaitingRoom
from llumnix.policy.classes import Classes, Declined, ServiceClass, TenantTerms
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.sim import reception
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.outcome import mean_gap_s
from llumnix.sim.profiles.file import load_profile
from llumnix.sim.setup import RunSetup
from llumnix.types import InstanceId, RequestId

TTFT_S, TPOT_S = 1.0, 0.1
LOADS = (0.7, 1.0, 1.3, 2.0)
INSTANCES = 8
PROFILE = load_profile("a100-llama-7b")
TRACE = "azure-conv"
SHORT_OF_MEMORY_RATE = 8.0
"""Requests per second."""
SPARED = 15
"""One in so many of the declined is let in."""

_SPARED: set[str] = set()
_CONDEMNED: set[str] = set()
"""Those of them that would have been declined but for that."""


class Sparing(WaitingRoom):
    """Some requests are never declined for being late."""

    def _too_late(self, held: HeldRequest, queue: QueueName, openings: Openings) -> Declined | None:
        declined = super()._too_late(held, queue, openings)
        return None if _spared(held, declined is not None) else declined

    @staticmethod
    def _misses_its_target(at_s: float, cls: ServiceClass, held: HeldRequest, opening: Opening) -> bool:
        is_late = WaitingRoom._misses_its_target(at_s, cls, held, opening)
        return is_late and not _spared(held, is_late)

    def _held_too_long(self, at_s: float) -> GaveUp | None:
        for queue, held in list(self._held.oldest()):
            if _spared(held, at_s >= held.at_s + self._classes[queue.cls].max_hold_s):
                self._held.take(held.request)
                self._held.add(queue, msgspec.structs.replace(held, at_s=at_s))
        return super()._held_too_long(at_s)


def _spared(held: HeldRequest, is_declined: bool) -> bool:
    if held.request not in _SPARED:
        return False
    if is_declined:
        _CONDEMNED.add(held.request)
    return True


def classes_of(count: int, **promises: float) -> Classes:
    tenants = [TenantTerms(name=f"t{number}", classes=("c",)) for number in range(count)]
    return Classes(
        classes={"c": ServiceClass(name="c", **promises)},  # type: ignore[arg-type]
        tenants={tenant.name: tenant for tenant in tenants},
        tenant_header="X-Tenant",
    )


def requests_at(rate: float, seed: int, count: int, weights: Sequence[float]) -> list[SimRequest]:
    """Of as many tenants as there are weights, which say how often each asks."""
    made = sim_requests(workload(TRACE, rate, seed, count))
    rng = random.Random(seed)
    for request in made:
        request.tenant = f"t{rng.choices(range(len(weights)), weights)[0]}"
    return made


def is_good(request: SimRequest) -> bool:
    return request.first_token_s - request.arrival_s <= TTFT_S and mean_gap_s(request) <= TPOT_S


def goodput(requests: list[SimRequest]) -> float:
    return sum(map(is_good, requests)) / (requests[-1].arrival_s - requests[0].arrival_s)


def run(requests: list[SimRequest], classes: Classes | None) -> list[SimRequest]:
    simulate(requests, RunSetup(instances=INSTANCES, profile=PROFILE, classes=classes))
    return requests


@contextmanager
def sparing(requests: list[SimRequest]) -> Iterator[None]:
    _SPARED.update(request.client_id for request in requests)
    with mock.patch.object(reception, "WaitingRoom", Sparing):
        yield
    _SPARED.clear()
    _CONDEMNED.clear()


def wrongly_refused(declined: list[SimRequest], again: list[SimRequest], classes: Classes) -> float | None:
    """Share of those that would have been good, by a sample; None if nobody of it was judged."""
    if not declined:
        return 0.0
    with sparing(declined[SPARED // 2 :: SPARED]):
        good = [is_good(request) for request in run(again, classes) if request.client_id in _CONDEMNED]
    return fmean(good) if good else None


def jain_of_service(rate: float, seed: int, count: int) -> float:
    """While all wait: from when a tenth of the requests have come until the first tenant has none left."""
    tenants = 8
    weights = [5.0 - 4 * number / (tenants - 1) for number in range(tenants)]
    requests = requests_at(4 * rate, seed, count, weights)
    run(requests, classes_of(tenants, max_hold_s=1e6, max_held=10**6))
    begin_s, last_s = requests[len(requests) // 10].arrival_s, dict.fromkeys(range(tenants), 0.0)
    for request in requests:
        last_s[int(request.tenant[1:])] = max(last_s[int(request.tenant[1:])], request.first_token_s)
    end_s = min(last_s.values())
    served = dict.fromkeys((f"t{number}" for number in range(tenants)), 0.0)
    for request in requests:
        if begin_s <= request.first_token_s <= end_s:
            served[request.tenant] += request.prompt_tokens + OUTPUT_WEIGHT * request.output_tokens
    work = np.array(list(served.values()))
    return float(work.sum() ** 2 / (len(work) * (work**2).sum()))


def admission_p99_us(tenants: int = 20, held: int = 1000, instances: int = 64) -> float:
    """What a request costs where many of many tenants wait: its asking and a call, without the sending."""
    machine = FrontEndMachine(PolicyConfig())
    for number in range(instances):
        load = InstanceSnapshot(id=InstanceId(f"i{number}"), at=0.0, seq=1, total_blocks=2000, free_blocks=1000)
        machine.handle(Reported(0.0, load))
    openings, room = DispatchOpenings(machine), WaitingRoom(classes_of(tenants, max_held=10**6), 0.0)
    costs_ns = []
    for number in range(5000):
        ask = Ask(Arrived(number * 1e-3, RequestId(f"r{number}"), 1000), f"t{number % tenants}", "c", 200)
        began = time.perf_counter_ns()
        room.ask(number * 1e-3, ask, openings)
        answer = room.call(number * 1e-3, openings) if number >= held else None
        costs_ns.append(time.perf_counter_ns() - began)
        if isinstance(answer, Called):
            room.ended(answer.request, 200)
    return float(np.percentile(costs_ns[held:], 99)) / 1e3


def where_memory_runs_out(seed: int, count: int) -> tuple[float, float]:
    """Goodput with classes over that of all let in; P99 of the admitted ones' first tokens over their target."""
    profile, classes = load_profile("a10-llama-7b"), classes_of(1, ttft_s=TTFT_S, max_hold_s=TTFT_S)
    goodputs = []
    for each in (None, classes):
        requests = sim_requests(workload("ShareGPT", SHORT_OF_MEMORY_RATE, seed, count))
        for request in requests:
            request.tenant = "t0"
        simulate(requests, RunSetup(instances=INSTANCES, profile=profile, classes=each))
        goodputs.append(goodput(requests))
    first_s = [request.first_token_s - request.arrival_s for request in requests if not request.declined]
    return goodputs[1] / goodputs[0], float(np.percentile(first_s, 99)) / TTFT_S


class Point(msgspec.Struct):
    """One load, over the seeds."""

    all_in: list[float] = msgspec.field(default_factory=list)
    """Goodput without classes."""
    admitted: list[float] = msgspec.field(default_factory=list)
    declined: list[float] = msgspec.field(default_factory=list)
    wrongly: list[float | None] = msgspec.field(default_factory=list)

    @property
    def wrongly_refused(self) -> float | None:
        """Share of all requests; None unless some were judged of each seed."""
        known = [share for share in self.wrongly if share is not None]
        return fmean(known) if len(known) == len(self.wrongly) else None


def measure(load: float, capacity: float, seed: int, count: int, point: Point) -> None:
    rate, classes = load * capacity, classes_of(10, ttft_s=TTFT_S, max_hold_s=TTFT_S)
    weights = [1 / (rank + 1) for rank in range(10)]
    point.all_in.append(goodput(run(requests_at(rate, seed, count, weights), None)))
    requests = run(requests_at(rate, seed, count, weights), classes)
    declined = [request for request in requests if request.declined]
    point.admitted.append(goodput(requests))
    point.declined.append(len(declined) / len(requests))
    wrongly = wrongly_refused(declined, requests_at(rate, seed, count, weights), classes)
    point.wrongly.append(None if wrongly is None else point.declined[-1] * wrongly)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--capacity", type=positive, default=30.0, help="Requests per second. Default: 30.")
    parser.add_argument("--requests", type=at_least_one, default=3000, help="Of each run. Default: 3000.")
    parser.add_argument("--seeds", type=at_least_one, default=3)
    values = parser.parse_args()
    refuse_repeats(parser, [TRACE], values.requests, values.seeds)
    points = {load: Point() for load in LOADS}
    print(f"{'load':>6}{'offered/s':>11}{'good/s, all let in':>20}{'with classes':>14}{'declined':>10}{'wrongly':>9}")
    for load, point in points.items():
        for seed in range(values.seeds):
            measure(load, values.capacity, seed, values.requests, point)
        cells = (fmean(point.all_in), fmean(point.admitted), fmean(point.declined))
        wrongly = "–" if point.wrongly_refused is None else f"{point.wrongly_refused:.1%}"
        told = "{:6g}{:11.1f}{:20.1f}{:14.1f}{:10.1%}{:>9}"
        print(told.format(load, load * values.capacity, *cells, wrongly), flush=True)
    jain = fmean(jain_of_service(values.capacity, seed, values.requests) for seed in range(values.seeds))
    at_capacity, beyond = points[1.0], points[2.0]
    return conclude(
        Figure(
            "goodput at 2 × capacity over that at capacity",
            fmean(beyond.admitted) / fmean(at_capacity.admitted),
            at_least(0.95),
        ),
        Figure("the same, all let in", fmean(beyond.all_in) / fmean(at_capacity.all_in)),
        Figure("goodput at 2 × capacity over that of all let in", fmean(beyond.admitted) / fmean(beyond.all_in)),
        Figure(
            "goodput at 0.7 × capacity over that of all let in",
            fmean(points[0.7].admitted) / fmean(points[0.7].all_in),
            at_least(0.98),
        ),
        *_short_of_memory([where_memory_runs_out(seed, values.requests // 2) for seed in range(values.seeds)]),
        *_wrongly_refused(beyond),
        Figure("refused at 0.7 × capacity", 100 * fmean(points[0.7].declined), at_most(5), "%"),
        Figure("Jain's index of service of eight who wait", jain, at_least(0.98)),
        Figure("admission, P99, 1,000 of 20 tenants wait", admission_p99_us(), at_most(50), "µs"),
    )


def _wrongly_refused(point: Point) -> Sequence[Figure]:
    wrongly = None if point.wrongly_refused is None else 100 * point.wrongly_refused
    of_declined = wrongly / fmean(point.declined) if wrongly else wrongly
    return (
        Figure("wrongly refused at 2 × capacity", wrongly, at_most(5), "%"),
        Figure("… of those that were declined", of_declined, at_most(5), "%"),
    )


def _short_of_memory(runs: Sequence[tuple[float, float]]) -> Sequence[Figure]:
    title = "where memory runs out first"
    return (
        Figure(f"{title}: goodput over that of all let in", fmean(gain for gain, _ in runs)),
        Figure(f"{title}: P99 of first tokens over their target", fmean(late for _, late in runs), at_most(1.1), "×"),
    )


if __name__ == "__main__":
    sys.exit(main())
