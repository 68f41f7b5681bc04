"""Whole answers of the admin API, as a server sends them, but for what a test says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import msgspec

from llumnix.api import bodies
from llumnix.control.scaling import ScalingMode
from llumnix.control.scheduler_events import DrainOutcome, DrainReport
from llumnix.types import InstanceId, InstanceState

Json = dict[str, Any]
Answer = Callable[[httpx.Request], httpx.Response]
Install = Callable[[Answer], None]
"""The fixture `answer_with`."""


def _but(whole: msgspec.Struct, facts: Json) -> Json:
    answer: Json = msgspec.to_builtins(whole)
    return answer | facts


def instance_row(instance: str, state: str = "running", **facts: Any) -> Json:
    return _but(bodies.InstanceRow(id=InstanceId(instance), state=InstanceState(state)), facts)


def request_row(request: str, instance: str, **facts: Any) -> Json:
    usual = {"priority": "normal", "prompt_tokens": 3, "output_tokens": 70, "state": "running", "migrations": 2}
    return {"id": request, "instance": instance, "movable": True, "why_pinned": None} | usual | facts


def status_answer(*rows: Json, **facts: Any) -> Json:
    scheduler = bodies.SchedulerRow(pid=5, state="running")
    limits = bodies.FreenessLimits(give=3.0, take=3.0)
    whole = bodies.InstancesAnswer(instances=[], scheduler=scheduler, freeness_limits=limits)
    return _but(whole, {"instances": list(rows)} | facts)


def scaling_row(**facts: Any) -> Json:
    counts = dict.fromkeys(("serving", "draining", "starting", "failing", "starts", "drains"), 0)
    return _but(
        bodies.ScalingRow(
            mode=ScalingMode.OFF,
            min_instances=1,
            max_instances=4,
            now="",
            last=None,
            instance_seconds=0.0,
            watched_s=0.0,
            mean_instances=None,
            **counts,
        ),
        facts,
    )


def drained(instance: str, each: int = 0, seconds: float = 0.5) -> DrainReport:
    """Of a drain that has ended; `each`: all of its counts."""
    counts = dict.fromkeys(("requests", "moved", "replayed", "finished", "left"), each)
    why = "asked for"
    return DrainReport(
        instance=InstanceId(instance), keep=False, why=why, outcome=DrainOutcome.EMPTY, seconds=seconds, **counts
    )


def drain_report(instance: str, **facts: Any) -> Json:
    return _but(drained(instance), facts)


def moved_answer(**facts: Any) -> Json:
    whole = bodies.MovedAnswer(
        source="i0",
        target="i1",
        stages=2,
        bytes=4096,
        blocks_skipped=0,
        copy_ms=20.0,
        handover_ms=3.2,
        downtime_ms=7.3,
    )
    return _but(whole, facts)


def state_answer(instance: str, state: str) -> Json:
    return _but(bodies.StateAnswer(id=InstanceId(instance), state=InstanceState(state)), {})


def started_answer(count: int) -> Json:
    return _but(bodies.StartedAnswer(starting=count), {})
