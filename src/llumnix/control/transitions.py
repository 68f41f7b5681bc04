"""How a migration machine takes an event: by a table, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from llumnix.control.commands import AnyCommand
from llumnix.errors import IllegalEvent
from llumnix.types import Epoch, RequestId

State = TypeVar("State", bound=StrEnum)


class Expired(msgspec.Struct, frozen=True, tag=True):
    """The machine's deadline has passed (made by the llumlet from `TimerFired`)."""


class Edge(Generic[State]):
    """`do(machine, at, event)` sets the machine's new state, one of `to`, and returns what the driver has to do."""

    __slots__ = ("do", "to")

    def __init__(self, do: Callable[[Any, float, Any], list[AnyCommand]], *to: State) -> None:
        self.do = do
        self.to = to


Table = Mapping[State, Mapping[type, Edge[State]]]


class Machine(Protocol[State]):
    state: State
    late: int
    request: RequestId
    epoch: Epoch


def late(machine: Machine[Any], at: float, event: object) -> list[AnyCommand]:
    """A doubled or overtaken message: counted, and nothing else."""
    machine.late += 1
    return []


def no_matter(machine: Machine[Any], at: float, event: object) -> list[AnyCommand]:
    """News that does not change what this state waits for."""
    return []


def follow(table: Table[State], machine: Machine[State], at: float, event: object) -> list[AnyCommand]:
    """Raises IllegalEvent, before anything changed, if the machine's state has no edge for the event."""
    edge = table[machine.state].get(type(event))
    if edge is None:
        what = f"{type(machine).__name__} of {machine.request}, epoch {machine.epoch}"
        raise IllegalEvent(f"{what}, is {machine.state} and cannot take {event}")
    commands = edge.do(machine, at, event)
    assert machine.state in edge.to, f"the table has no edge to {machine.state} for {event}"
    return commands
