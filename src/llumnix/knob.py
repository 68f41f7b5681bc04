"""A field of a configuration dataclass that is a flag, too."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any

from llumnix.errors import UsageError

_LARGEST = 1e9
"""In seconds some thirty years. JSON, in which processes tell each other all this, knows no infinite number, and clocks
and timers have an end."""


def knob(
    default: Any, help: str, values: tuple[str, ...] = (), also: tuple[str, ...] = (), *, path: bool = False
) -> Any:
    """A field with its one-sentence description (used for flags and the reference), the values that it may have, where
    they are few words, other spellings of its flag, and whether it names a file or a folder."""
    return field(default=default, metadata={"help": help, "values": values, "also": also, "path": path})


def refuse_beyond_measure(config: Any) -> None:
    """Raises UsageError if a field of `config` is no number, or one that is as good as infinite."""
    for each in fields(config):
        value = getattr(config, each.name)
        if isinstance(value, int | float) and not -_LARGEST <= value <= _LARGEST:
            most = (
                f"a whole number up to {_LARGEST:.0f}" if isinstance(value, int) else f"a number up to {_LARGEST:.0e}"
            )
            never = " (never)" if each.name.endswith("_s") else ""
            raise UsageError(f"--{each.name.replace('_', '-')} must be {most}{never}, not {value}.")
