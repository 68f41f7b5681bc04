"""Scheduling at scale (figure 16): how long a decode step waits for its scheduler.

A centralised scheduler must hear from an instance, decide, and answer before the next step of that instance can
begin, and serves all instances from one queue. Ours runs beside the steps: an instance only makes a load report
now and then. Both costs are measured (`benchmarks/message_cost.py`, `benchmarks/report_cost.py`), not guessed; the
queueing is simulated. They are not of the same work: a report is made of what is read from the engine, which the
instances of a centralised scheduler would do as well, and which is not in its cost.
"""

from __future__ import annotations

import random

from llumnix.sim.kernel import Kernel
from llumnix.sim.profiles.cost_model import Profile

CENTRAL_BASE_S = 3.5e-6
"""CPU time of the centralised scheduler per iteration of one instance: message in, message out; measured."""

CENTRAL_REQUEST_S = 0.19e-6
"""Besides, per request of that instance's batch; measured."""

REPORT_BASE_S = 14.2e-6
"""CPU time of an instance to make and encode a load report of an empty batch; measured."""

REPORT_REQUEST_S = 1.5e-6
"""Besides, per request of its batch; measured."""

STEPS = 100
"""Decode steps of every instance that are simulated."""

STEP_SPREAD = 0.2
"""Steps take up to this much more or less than the mean: batches differ. In lockstep nobody would ever wait."""


class _Central:
    """One server and a queue: instances compute, then wait for their turn."""

    def __init__(self, instances: int, step_s: float, service_s: float) -> None:
        self.waited_s = 0.0
        self.steps = 0
        self._kernel = Kernel()
        self._free_at_s = 0.0
        self._step_s = step_s
        self._service_s = service_s
        self._random = random.Random("steps")
        for number in range(instances):
            self._kernel.at(step_s * number / instances, self._computed, STEPS)

    def run(self) -> float:
        """Mean stall of a step, its own service included."""
        self._kernel.run()
        return self.waited_s / self.steps

    def _computed(self, left: int) -> None:
        now = self._kernel.now
        self._free_at_s = max(self._free_at_s, now) + self._service_s
        self.waited_s += self._free_at_s - now
        self.steps += 1
        if left > 1:
            step_s = self._step_s * self._random.uniform(1 - STEP_SPREAD, 1 + STEP_SPREAD)
            self._kernel.at(self._free_at_s + step_s, self._computed, left - 1)


def batch_size(profile: Profile, rate: float, instances: int, tokens: int, stall_s: float) -> tuple[int, float]:
    """Sequences per instance and its step time when `rate` requests/s of `tokens` prompt and output tokens arrive,
    by Little's law; the fixed point of batch and step time."""
    size = 1.0
    for _ in range(64):
        step_s = profile.decode.step_ms(max(1, round(size)), int(size * tokens * 1.5)) / 1e3 + stall_s
        size = min(rate / instances * tokens * step_s, float(profile.scheduler.max_num_seqs))
    return max(1, round(size)), step_s


def central_stall_s(profile: Profile, rate: float, instances: int, tokens: int) -> float:
    """Mean stall of a decode step under the centralised scheduler; batch and stall are made to agree."""
    stall_s = 0.0
    for _ in range(4):
        size, step_s = batch_size(profile, rate, instances, tokens, stall_s)
        stall_s = _Central(instances, step_s - stall_s, CENTRAL_BASE_S + CENTRAL_REQUEST_S * size).run()
    return stall_s


def report_stall_s(size: int, step_s: float, report_interval_s: float) -> float:
    """Mean stall of a step of a batch of that size by load reports, if making them held up the step (live they hide
    behind it)."""
    return (REPORT_BASE_S + REPORT_REQUEST_S * size) * min(1.0, step_s / report_interval_s)
