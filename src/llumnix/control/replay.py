"""Run a llumlet's story again: a dump from a cluster becomes a test."""

from __future__ import annotations

from typing import Any

import msgspec

from llumnix.config import MigrationConfig
from llumnix.control.attempts import Attempts
from llumnix.control.commands import AnyCommand
from llumnix.control.events import AnyEvent
from llumnix.control.llumlet import ChooseVictims, Llumlet
from llumnix.control.story import Entry, light_commands
from llumnix.types import InstanceId


class Dump(msgspec.Struct, frozen=True, kw_only=True):
    instance: InstanceId
    config: MigrationConfig
    cooldown_s: float
    begin: Attempts
    entries: list[Entry]


class Replayed(msgspec.Struct, frozen=True):
    """What the machine answered to an event then, and what it answers now."""

    event: AnyEvent
    then: list[AnyCommand]
    now: list[AnyCommand]


def dump(llumlet: Llumlet) -> dict[str, Any]:
    """All that is needed to replay the remembered part of the story, as plain data (fit for JSON)."""
    plain: dict[str, Any] = msgspec.to_builtins(
        Dump(
            instance=llumlet.instance,
            config=llumlet.config,
            cooldown_s=llumlet.cooldown_s,
            begin=msgspec.json.decode(llumlet.story.begin, type=Attempts),
            entries=llumlet.story.entries,
        )
    )
    return plain


def replay(plain: dict[str, Any], choose_victims: ChooseVictims) -> list[Replayed]:
    """Raises msgspec.ValidationError if `plain` is not a dump."""
    then = msgspec.convert(plain, Dump)
    llumlet = Llumlet(then.instance, then.config, choose_victims, then.cooldown_s, attempts=then.begin)
    return [
        Replayed(entry.event, entry.commands, light_commands(llumlet.handle(entry.event))) for entry in then.entries
    ]
