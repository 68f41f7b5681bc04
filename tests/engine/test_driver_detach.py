"""Requests that leave the batch at the same moment are reported to the machine once each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from llumnix.config import MigrationConfig
from llumnix.control import commands, events
from llumnix.engine.vllm.instance.driver import LlumletDriver
from llumnix.engine.vllm.instance.engine_access import EngineAccess
from llumnix.types import RequestId


class Machine:
    """Remembers what happened, and lets requests leave when told to."""

    incoming = outgoing = 0

    def __init__(self) -> None:
        self.seen: list[events.AnyEvent] = []

    def handle(self, event: events.AnyEvent) -> list[commands.AnyCommand]:
        self.seen.append(event)
        if isinstance(event, events.TimerFired):
            return [commands.Detach(RequestId(name)) for name in ("a", "b", "c")]
        return []

    @property
    def detached(self) -> list[str]:
        return [event.request for event in self.seen if isinstance(event, events.Detached)]


class Scheduler:
    tables = SimpleNamespace(state_blocks=0)
    last_steps = ()

    def __init__(self) -> None:
        self.ended: list[Any] = []
        self.requests = {
            name: SimpleNamespace(num_in_flight_tokens=1, num_computed_tokens=40, num_output_tokens=3) for name in "abc"
        }

    def lend(self, request: Any) -> None:
        pass

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // 16)


def test_each_is_reported_once_when_its_last_step_is_through() -> None:
    machine, scheduler = Machine(), Scheduler()
    engine: Any = dict.fromkeys(
        (
            "info",
            "structured_output",
            "post",
            "post_soon",
            "ship",
            "forget",
            "put_output",
            "wake_at",
            "has_adapter",
        )
    )
    engine["workers"] = SimpleNamespace(order=None)
    driver = LlumletDriver(
        EngineAccess(**engine, scheduler=scheduler, pins="", clock=lambda: 0.0),  # type: ignore[arg-type]
        machine,  # type: ignore[arg-type]
        MigrationConfig(),
        book=None,  # type: ignore[arg-type]
    )
    driver.tick()
    driver.after_step()
    assert machine.detached == []
    for name in ("a", "b", "c"):
        scheduler.requests[name].num_in_flight_tokens = 0
    driver.after_step()
    driver.after_step()
    assert machine.detached == ["a", "b", "c"]
