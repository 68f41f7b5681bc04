"""Run what happened again: a recording from a cluster becomes a test.

The machines are pure, so the same events must give the same commands, whoever carried them out the first time.
A recording (`recording.py` writes and reads the files) begins with how its machine was made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

import msgspec
from msgspec.structs import replace as changed

from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig, ScalingConfig
from llumnix.control.commands import AnyCommand
from llumnix.control.drain import DrainLimits
from llumnix.control.events import AnyEvent
from llumnix.control.front_end import FrontEndMachine, RecordFrontEnd
from llumnix.control.front_end_events import Deliver, FrontEndCommand, FrontEndEvent, Outputs
from llumnix.control.llumlet import Llumlet
from llumnix.control.scaling import Autoscaler, ScalingMode
from llumnix.control.scheduler import GlobalScheduler
from llumnix.control.scheduler_events import SchedulerCommand, SchedulerEvent
from llumnix.control.transcript import Entry, light, light_commands
from llumnix.policy.catalogue import find_policy
from llumnix.policy.victim import choose_victims
from llumnix.types import InstanceId, RequestId


class LlumletBegin(msgspec.Struct, frozen=True, kw_only=True, tag="llumlet"):
    """How the llumlet of a recording was made."""

    entry_type: ClassVar[type[Entry]] = Entry

    instance: InstanceId
    policy: str
    config: MigrationConfig
    cooldown_s: float

    def make(self, record: Callable[[AnyEvent, list[AnyCommand]], None] | None = None) -> Llumlet:
        rule = find_policy(self.policy).victim
        llumlet = Llumlet(self.instance, self.config, partial(choose_victims, rule), self.cooldown_s)
        llumlet.record = record
        return llumlet

    def entry(self, event: AnyEvent, commands: list[AnyCommand]) -> Entry:
        return Entry(light(event), self.bare(commands))

    def bare(self, commands: list[AnyCommand]) -> list[AnyCommand]:
        return light_commands(commands)


class SchedulerEntry(msgspec.Struct, frozen=True):
    event: SchedulerEvent
    commands: list[SchedulerCommand]


class SchedulerBegin(msgspec.Struct, frozen=True, kw_only=True, tag="scheduler"):
    """How the global scheduler of a recording was made."""

    entry_type: ClassVar[type[SchedulerEntry]] = SchedulerEntry

    policy: PolicyConfig
    instance_timeout_s: float
    limits: DrainLimits
    scaling: ScalingConfig | None = None
    """None: it was made without an autoscaler."""
    mode: ScalingMode = ScalingMode.OFF
    step_timeout_s: float = ClusterConfig().step_timeout_s
    name: str = "scheduler"

    def make(self) -> GlobalScheduler:
        autoscaler = None if self.scaling is None else Autoscaler(self.scaling, self.mode)
        return GlobalScheduler(
            self.policy, self.instance_timeout_s, self.limits, autoscaler, self.step_timeout_s, self.name
        )

    def entry(self, event: SchedulerEvent, commands: list[SchedulerCommand]) -> SchedulerEntry:
        return SchedulerEntry(event, [*commands])

    def bare(self, commands: list[SchedulerCommand]) -> list[SchedulerCommand]:
        return commands


class FrontEndEntry(msgspec.Struct, frozen=True):
    event: FrontEndEvent
    commands: list[FrontEndCommand]
    delivered: dict[RequestId, int]
    """Before the event, of the streams that it concerns: tokens are counted where no event tells of them."""


class FrontEndBegin(msgspec.Struct, frozen=True, kw_only=True, tag="front end"):
    """How the mind of a front end was made."""

    entry_type: ClassVar[type[FrontEndEntry]] = FrontEndEntry

    policy: PolicyConfig
    index: int = 0
    ledger: bool = True

    def make(self, record: RecordFrontEnd | None = None) -> FrontEndMachine:
        machine = FrontEndMachine(self.policy, self.index, self.ledger)
        machine.record = record
        return machine

    def entry(
        self, event: FrontEndEvent, commands: list[FrontEndCommand], delivered: dict[RequestId, int]
    ) -> FrontEndEntry:
        if isinstance(event, Outputs):
            event = changed(event, outputs=(None,) * len(event.outputs))
        return FrontEndEntry(event, self.bare(commands), delivered)

    def bare(self, commands: list[FrontEndCommand]) -> list[FrontEndCommand]:
        """Without what clients are told."""
        return [
            changed(command, outputs=(None,) * len(command.outputs)) if isinstance(command, Deliver) else command
            for command in commands
        ]


Begin = LlumletBegin | SchedulerBegin | FrontEndBegin
AnyEntry = Entry | SchedulerEntry | FrontEndEntry


class Differs(msgspec.Struct, frozen=True):
    """An event, the `number`-th from 1, that is answered otherwise now than then."""

    number: int
    event: AnyEvent | SchedulerEvent | FrontEndEvent
    then: list[Any]
    now: list[Any]


def replay_recording(begin: Begin, entries: Iterable[AnyEntry]) -> list[Differs]:
    """Every event whose commands are not the recorded ones; empty if it all comes out the same."""
    machine: Any = begin.make()
    bare: Any = begin.bare
    found: list[Differs] = []
    for number, entry in enumerate(entries, start=1):
        if isinstance(entry, FrontEndEntry):
            machine.counted(entry.delivered)
        now: list[Any] = bare(machine.handle(entry.event))
        if now != entry.commands:
            found.append(Differs(number, entry.event, [*entry.commands], now))
    return found
