"""What to try: `instances=12`, `policy=infaas++`, `migration=off`, several with commas between; `instances=4..10`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llumnix.command_line import closest
from llumnix.config import MigrationConfig, PolicyConfig
from llumnix.config_flags import Parser, add_flags, build
from llumnix.errors import UsageError
from llumnix.flags import refuse_what_does_nothing
from llumnix.policy.catalogue import find_policy
from llumnix.record.form import About
from llumnix.sim.cli import MOST_INSTANCES

_MOST_ALTERNATIVES = 64
_SWITCH = {"on": "--", "off": "--no-"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    name: str
    """As it was asked for."""
    instances: int
    policy: PolicyConfig
    migration: MigrationConfig


def as_it_was(about: About, instances: int) -> Alternative:
    """The settings of a recorded run."""
    return Alternative(name="as it was", instances=instances, policy=about.policy, migration=about.migration)


def alternatives(texts: Sequence[str], was: Alternative, most: int = _MOST_ALTERNATIVES) -> list[Alternative]:
    """Raises UsageError for a text that makes no sense, and for too many before it makes any."""
    asked = [_asked(text) for text in texts]
    count = sum(1 if numbers is None else len(numbers) for _, numbers in asked)
    if count > most:
        raise UsageError(f"{count} alternatives are too many: at most {most} at a time.")
    return [_alternative(each, was) for said, numbers in asked for each in _each_of(said, numbers)]


def _each_of(said: dict[str, str], numbers: range | None) -> list[dict[str, str]]:
    return [said] if numbers is None else [said | {"instances": str(number)} for number in numbers]


def _asked(text: str) -> tuple[dict[str, str], range | None]:
    """Knobs and values, and the numbers of instances of a range."""
    said: dict[str, str] = {}
    for item in text.split(","):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not (name and equals and value) or name in said:
            raise UsageError(f"--try {text}: {item!r} is not one knob and its value, as in instances=12,migration=off.")
        said[name] = value
    first, dots, last = said.get("instances", "").partition("..")
    if not dots:
        return said, None
    low, high = _count(text, first), _count(text, last)
    if low > high:
        raise UsageError(f"--try {text}: {first} is more than {last}.")
    return said, range(low, high + 1)


def _alternative(said: Mapping[str, str], was: Alternative) -> Alternative:
    name = ",".join(f"{knob}={value}" for knob, value in said.items())
    knobs = {knob: value for knob, value in said.items() if knob != "instances"}
    try:
        values, given = _parsed(knobs, was)
        policy, migration = build(PolicyConfig, values), build(MigrationConfig, values)
        refuse_what_does_nothing(given, find_policy(policy.policy), migration=policy.migration, scales_with="")
    except UsageError as error:
        raise UsageError(f"--try {name}: {error}") from error
    instances = _count(name, said["instances"]) if "instances" in said else was.instances
    return Alternative(name=name, instances=instances, policy=policy, migration=migration)


def _parsed(knobs: Mapping[str, str], was: Alternative) -> tuple[argparse.Namespace, dict[str, str]]:
    """As on the command line; what is not given is as it was. And the flags by their fields."""
    parser = Parser(prog="llumnix simulate")
    for config in (PolicyConfig, MigrationConfig):
        add_flags(parser, config)
    values = _flat(was.policy) | _flat(was.migration)
    parser.set_defaults(**values)
    switches = {field for field, value in values.items() if isinstance(value, bool)}
    words: list[str] = []
    given: dict[str, str] = {}
    for knob, value in knobs.items():
        flag, field = knob.replace("_", "-"), knob.replace("-", "_")
        if field not in values:
            meant = closest(flag, ["instances", *(name.replace("_", "-") for name in values)])
            raise UsageError(f"there is no knob {knob}" + (f"; did you mean {meant}?" if meant else "."))
        if field in switches and value not in _SWITCH:
            raise UsageError(f"{flag} is on or off, not {value}.")
        words.append(f"{_SWITCH[value]}{flag}" if field in switches else f"--{flag}={value}")
        given[field] = words[-1].partition("=")[0]
    return parser.parse_args(words), given


def _flat(config: Any) -> dict[str, Any]:
    """Its fields, and those of what is in it, as flags have them."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        flat |= _flat(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return flat


def _count(text: str, number: str) -> int:
    if not (number.isascii() and number.isdecimal()) or not 1 <= int(number) <= MOST_INSTANCES:
        raise UsageError(f"--try {text}: instances are a number from 1 to {MOST_INSTANCES}, or two with .. between.")
    return int(number)
