"""What happened to a llumlet: a bounded log of the last events and the commands that they caused, for whoever reads the
fault that it raises. Payloads and block ids, which no machine reads, are left out.
"""

from __future__ import annotations

from typing import Any

import msgspec

from llumnix.control.commands import AnyCommand, Install, Pull, Reserve, Send
from llumnix.control.events import AnyEvent, MoveOrdered, Received
from llumnix.control.messages import AnyMessage, Commit, Copy, Prepare
from llumnix.types import RequestId


class Entry(msgspec.Struct, frozen=True):
    event: AnyEvent
    commands: list[AnyCommand]

    def concerns(self, request: RequestId) -> bool:
        """True if the event or one of the commands names the request."""
        return any(request_of(part) == request for part in (self.event, *self.commands))

    def __str__(self) -> str:
        return f"{self.event}\n" + "".join(f"    {command}\n" for command in self.commands)


HALF_CANDIDATES = 10_000
"""Requests that a half may name in all as candidates, some 3 MiB: an order shows a llumlet its whole batch."""


class Transcript:
    """At most `2 * half` entries, or fewer if they are long; when they are reached, the older half goes."""

    def __init__(self, half: int = 1000) -> None:
        self._half = half
        self._older: list[Entry] = []
        self._newer: list[Entry] = []
        self._newer_candidates = 0

    def add(self, event: AnyEvent, commands: list[AnyCommand]) -> None:
        if len(self._newer) == self._half or self._newer_candidates >= HALF_CANDIDATES:
            self._older, self._newer, self._newer_candidates = self._newer, [], 0
        self._newer.append(Entry(light(event), light_commands(commands)))
        if isinstance(event, MoveOrdered):
            self._newer_candidates += len(event.candidates)

    @property
    def entries(self) -> list[Entry]:
        return [*self._older, *self._newer]

    def of(self, request: RequestId) -> list[Entry]:
        """All that is remembered about one request."""
        return [entry for entry in self.entries if entry.concerns(request)]


def light(event: AnyEvent) -> AnyEvent:
    """The event without what no machine reads."""
    if isinstance(event, Received):
        message = _light_message(event.message)
        return event if message is event.message else Received(event.at, message)
    return event


def light_commands(commands: list[AnyCommand]) -> list[AnyCommand]:
    """The commands without what no machine wrote or reads."""
    return [_light_command(command) for command in commands]


def _light_command(command: AnyCommand) -> AnyCommand:
    if isinstance(command, Reserve | Pull | Install):
        message: Any = _light_message(command.message)
        return msgspec.structs.replace(command, message=message)
    return command


def _light_message(message: AnyMessage) -> AnyMessage:
    if isinstance(message, Commit):
        return msgspec.structs.replace(message, payload=b"", block_ids=())
    if isinstance(message, Copy):
        return msgspec.structs.replace(message, block_ids=())
    if isinstance(message, Prepare):
        return msgspec.structs.replace(message, payload=b"")
    return message


def request_of(part: AnyEvent | AnyCommand) -> RequestId | None:
    """The request that an event or a command is about; None if it is about the whole llumlet."""
    named = part.message if isinstance(part, Received | Send) else part
    return getattr(named, "request", None)
