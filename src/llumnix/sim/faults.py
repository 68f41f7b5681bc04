"""What goes wrong, and when: crashes, stalls, slow engines and links, as a plan that is made before the run.

`parse_fault` reads the words of the command line: `crash@60`, `crash@60:3`, `stall@60+5:3`, `hang@60+300:3`,
`slow@60+30x2:3`, `slow-link@60+30:10`.
Without an instance number the victim is drawn from the fault plan's own generator, so that adding a
fault never changes arrivals or lengths.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf

from llumnix.errors import UsageError


class FaultKind(StrEnum):
    CRASH = "crash"
    """The process of an instance is gone."""
    STALL = "stall"
    """An instance does nothing, and does not report, for `duration_s`."""
    HANG = "hang"
    """An engine does nothing for `duration_s`, but its process lives and repeats the last report."""
    SLOW = "slow"
    """The steps of an engine take `factor` times as long for `duration_s`."""
    SLOW_LINK = "slow-link"
    """Copies and messages of all instances take `factor` times as long for `duration_s`."""


@dataclass(frozen=True, slots=True)
class Fault:
    kind: FaultKind
    at_s: float
    duration_s: float = 0.0
    instance: int | None = None
    """Number of the victim, counted in order of start; None: to be drawn."""
    factor: float = 1.0


FORMS = "crash@60, crash@60:3, stall@60+5:3, hang@60+300:3, slow@60+30x2:3 or slow-link@60+30:10"

_FORM = re.compile(
    r"(?P<kind>[a-z-]+)@(?P<at>[0-9.]+)(\+(?P<duration>[0-9.]+))?(x(?P<times>[0-9.]+))?(:(?P<extra>[0-9.]+))?"
)


def parse_fault(text: str) -> Fault:
    """Reads one fault; raises UsageError with the forms that there are."""
    match = _FORM.fullmatch(text.strip())
    problem = f"{text!r} is not a fault: use {FORMS}."
    if match is None or match["kind"] not in list(FaultKind):
        raise UsageError(problem)
    kind = FaultKind(match["kind"])
    try:
        at_s, duration_s = float(match["at"]), float(match["duration"] or 0)
        extra = None if match["extra"] is None else float(match["extra"])
        times = None if match["times"] is None else float(match["times"])
    except ValueError:
        raise UsageError(problem) from None
    if (kind is FaultKind.CRASH) == (match["duration"] is not None) or (kind is FaultKind.SLOW) != (times is not None):
        raise UsageError(problem)
    if times is not None and not 1 <= times < inf:
        raise UsageError(f"{text!r}: a slow engine needs how many times slower, at least 1, as in slow@60+30x2:3.")
    if kind is FaultKind.SLOW_LINK:
        if extra is None or extra < 1:
            raise UsageError(
                f"{text!r}: a slow link needs how many times slower, at least 1, as in slow-link@60+30:10."
            )
        return Fault(kind, at_s, duration_s, factor=extra)
    if extra is not None and extra != int(extra):
        raise UsageError(problem)
    return Fault(kind, at_s, duration_s, None if extra is None else int(extra), times or 1.0)


def draw_victims(faults: Iterable[Fault], instances: int, seed: int) -> tuple[Fault, ...]:
    """The faults in order of time, each with a victim; raises UsageError for a number that is too high."""
    rng = random.Random(f"faults {seed}")
    plan = []
    for fault in sorted(faults, key=lambda one: one.at_s):
        drawn = rng.randrange(instances)
        if fault.instance is not None and fault.instance >= instances:
            raise UsageError(f"There is no instance {fault.instance}: they are numbered from 0 to {instances - 1}.")
        plan.append(replace(fault, instance=drawn) if fault.instance is None else fault)
    return tuple(plan)
