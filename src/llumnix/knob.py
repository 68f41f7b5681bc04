"""A field of a configuration dataclass that is a flag, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, fields
from typing import Any, Literal

from llumnix.errors import UsageError

_LARGEST = 1e9
"""In seconds some thirty years. JSON, in which processes tell each other all this, knows no infinite number, and clocks
and timers have an end."""


Bound = Literal["", ">= 0", ">= 1", "> 0"]

_BOUNDS: dict[Bound, tuple[Callable[[float], bool], str]] = {
    "": (lambda value: True, ""),
    ">= 0": (lambda value: value >= 0, "not be negative"),
    ">= 1": (lambda value: value >= 1, "be at least 1"),
    "> 0": (lambda value: value > 0, "be above 0"),
}
"""What a number has to be, and what it is said that it must."""


def knob(
    default: Any,
    help: str,
    bound: Bound = "",
    *,
    values: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
    path: bool = False,
) -> Any:
    """A field with its one-sentence description (used for flags and the reference), what its number has to be, the
    values that it may have, where they are few words, other spellings of its flag, and whether it names a file or a
    folder."""
    told = {"help": help, "bound": bound, "values": values, "also": also, "path": path}
    return field(default=default, metadata=told)


def check_knobs(config: Any) -> None:
    """Raises UsageError if a field of `config` is not what its knob says, or a number that is as good as infinite."""
    for each in fields(config):
        flag, value = f"--{each.name.replace('_', '-')}", getattr(config, each.name)
        values = each.metadata.get("values")
        if values and value not in values:
            raise UsageError(f"{flag} must be {', '.join(values[:-1])} or {values[-1]}, not {value}.")
        if isinstance(value, int | float):
            _check_number(flag, value, each.metadata["bound"])


def _check_number(flag: str, value: float, bound: Bound) -> None:
    if not -_LARGEST <= value <= _LARGEST:
        most = f"a whole number up to {_LARGEST:.0f}" if isinstance(value, int) else f"a number up to {_LARGEST:.0e}"
        never = " (never)" if flag.endswith("-s") else ""
        raise UsageError(f"{flag} must be {most}{never}, not {value}.")
    is_good, what = _BOUNDS[bound]
    if not is_good(value):
        raise UsageError(f"{flag} must {what}.")
