"""Profiles as files: reading, writing, and finding the ones that come with the package."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import MISSING, asdict, fields
from importlib import resources
from pathlib import Path
from typing import Any

from llumnix.errors import UsageError
from llumnix.paths import expanded
from llumnix.sim.profiles.cost_model import (
    DecodeProfile,
    HostProfile,
    MemoryProfile,
    MigrationProfile,
    PrefillProfile,
    Profile,
    SchedulerProfile,
)

_SECTIONS: dict[str, type[Any]] = {
    "memory": MemoryProfile,
    "prefill": PrefillProfile,
    "decode": DecodeProfile,
    "migration": MigrationProfile,
    "scheduler": SchedulerProfile,
    "host": HostProfile,
}


def profile_names() -> list[str]:
    """Names of the profiles that come with the package."""
    folder = resources.files("llumnix.sim.profiles")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_profile(name: str) -> Profile:
    """A profile by its name or by the path of a TOML file. Raises UsageError with one sentence."""
    if name in profile_names():
        text = (resources.files("llumnix.sim.profiles") / f"{name}.toml").read_text()
    else:
        try:
            text = expanded(name).read_text()
        except UnicodeDecodeError:
            raise UsageError(f"Profile {name} is not a text file.") from None
        except OSError:
            known = ", ".join(profile_names())
            raise UsageError(f"There is no profile {name!r}: give a TOML file, or one of {known}.") from None
    return parse_profile(text, name)


def parse_profile(text: str, name: str) -> Profile:
    """A profile from TOML text; `name` is for the sentences of errors."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"Profile {name} is not valid TOML: {error}.") from None
    for key in ("name", "origin"):
        if not isinstance(table.get(key), str):
            raise UsageError(f"Profile {name} lacks the field {key!r} (a string).")
    unknown = sorted(set(table) - set(_SECTIONS) - {"name", "origin"})
    if unknown:
        raise UsageError(f"Profile {name} has an unknown field {unknown[0]!r}.")
    sections = {key: _section(kind, table.get(key), f"{name}: {key}") for key, kind in _SECTIONS.items()}
    return Profile(name=table["name"], origin=table["origin"], **sections)


def _section(kind: type[Any], table: object, where: str) -> Any:
    if table is None:
        table = {}
    if not isinstance(table, dict):
        raise UsageError(f"Profile {where} must be a table.")
    known = {field.name: field for field in fields(kind)}
    for key in table:
        if key not in known:
            raise UsageError(f"Profile {where} has an unknown field {key!r}.")
    values: dict[str, Any] = {}
    for key, field in known.items():
        if key in table:
            values[key] = _value(table[key], str(field.type), f"{where}.{key}")
        elif field.default is MISSING:
            raise UsageError(f"Profile {where} lacks the field {key!r}.")
    try:
        return kind(**values)
    except UsageError as error:
        raise UsageError(f"Profile {where.split(':')[0]}: {error}") from None


def _value(value: object, kind: str, where: str) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "float" and number and math.isfinite(value):  # type: ignore[arg-type]
        return float(value)  # type: ignore[arg-type]
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind == "str" and isinstance(value, str):
        return value
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind.startswith("tuple") and isinstance(value, list):
        inner = kind.removeprefix("tuple[").split(",")[0]
        return tuple(_value(entry, inner, where) for entry in value)
    expected = {"float": "a finite number", "int": "a whole number", "str": "a text", "bool": "true or false"}
    raise UsageError(f"Profile {where} must be {expected.get(kind, 'a list of numbers')}, not {value!r}.")


def write_profile(profile: Profile, path: Path) -> None:
    """Writes a profile so that `load_profile` gives it back unchanged."""
    lines = [f"name = {_toml(profile.name)}", f"origin = {_toml(profile.origin)}"]
    for key in _SECTIONS:
        lines += ["", f"[{key}]"]
        lines += [f"{name} = {_toml(value)}" for name, value in asdict(getattr(profile, key)).items()]
    path.write_text("\n".join(lines) + "\n")


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # all else that TOML wants escaped
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(entry) for entry in value) + "]"
    return repr(value)
