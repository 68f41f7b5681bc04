"""A field of a configuration dataclass that is a flag, too."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def knob(default: Any, help: str, values: tuple[str, ...] = (), also: tuple[str, ...] = ()) -> Any:
    """A field with its one-sentence description (used for flags and the reference), the values that it may have, where
    they are few words, and other spellings of its flag."""
    return field(default=default, metadata={"help": help, "values": values, "also": also})
