"""Command line flags made from the configuration dataclasses, and these made from parsed flags."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from llumnix.command_line import closest
from llumnix.errors import UsageError
from llumnix.paths import path_text
from llumnix.policy.catalogue import POLICIES

Config = TypeVar("Config")

_METAVARS = {bool: "", int: "N", float: "X", str: "TEXT"}


class Parser(argparse.ArgumentParser):
    """Reports a bad line as UsageError and knows no abbreviations, which would swallow flags meant for vLLM."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """A flag that is not known is told before one that is missing: it may be that one, misspelt."""
        for word in args or ():
            name = word.partition("=")[0]
            if name == "--":  # what follows are no flags
                break
            if name.startswith("--") and name not in self._option_string_actions:
                meant = closest(name, self._option_string_actions)
                then = f"did you mean {meant}?" if meant else f"`{self.prog} --help` lists them."
                raise UsageError(f"There is no flag {name}; {then}")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        sentence = message[:1].upper() + message[1:]
        raise UsageError(f"{sentence} (see {self.prog} --help).")


def add_flags(parser: argparse.ArgumentParser, config: type[Any]) -> None:
    """One flag for each field of `config`, in a group that is headed by the first sentence of its docstring; those of
    dataclasses in it in groups of their own."""
    title, _, _ = (config.__doc__ or config.__name__).partition(":")
    group = parser.add_argument_group(title.strip().rstrip("."))
    types = get_type_hints(config)
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(types[field.name]):
            add_flags(parser, types[field.name])
            continue
        options: dict[str, Any] = {"dest": field.name, "default": field.default}
        (kind,) = {types[field.name], *get_args(types[field.name])} & _METAVARS.keys()
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
            default = "on" if field.default else "off"
        else:
            values = POLICIES if field.name == "policy" else field.metadata["values"]
            read = path_text if field.metadata["path"] else kind
            options |= {"type": read, "metavar": f"{{{','.join(values)}}}" if values else _METAVARS[kind]}
            default = "" if field.default is None else str(field.default)
        text = field.metadata["help"] + (f" Default: {default}." if default else "")
        names = ("--" + field.name.replace("_", "-"), *field.metadata["also"])
        group.add_argument(*names, help=text.replace("%", "%%"), **options)


def build(config: type[Config], values: argparse.Namespace) -> Config:
    """The dataclass from parsed flags. Raises UsageError when they contradict each other."""
    types = get_type_hints(config)
    found: dict[str, Any] = {}
    for name in [field.name for field in dataclasses.fields(config)]:  # type: ignore[arg-type]
        nested = dataclasses.is_dataclass(types[name])
        found[name] = build(types[name], values) if nested else getattr(values, name)
    return config(**found)
