"""`--classes FILE`: classes of requests and the tenants that send them (`policy/classes.py`), in YAML or JSON.

    classes:
      interactive: {ttft_s: 1.0, tpot_s: 0.1, share: 4, priority: high}
      batch: {max_hold_s: 600}
    tenants:
      alice: {key_sha256: 9f86d0…, classes: [interactive, batch], weight: 2, tokens_per_minute: 200000}
    others: {classes: [batch], requests_per_minute: 60}

Whatever is not exactly as it must be is refused with its line: nobody is to believe in limits that are not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from llumnix.command_line import closest
from llumnix.errors import UsageError, in_a_clause
from llumnix.policy.classes import DEFAULT_HOLD_S, Classes, ServiceClass, TenantTerms
from llumnix.types import HIGH, NORMAL

OTHERS = "others"

MOST_TENANTS = 1000

_LARGEST = 1e300
_HEADER = "header:"
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")


def read_classes(path: str) -> Classes:
    """Raises UsageError, one sentence with the line."""
    try:
        text = Path(path).read_text()
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise UsageError(f"The classes file {path} cannot be read: {in_a_clause(error)}.") from error
    except yaml.MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        raise UsageError(f"{path}:{line}: the file is not YAML: {error.problem}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"The classes file {path} is not YAML: {' '.join(str(error).split())}.") from error
    if root is None:
        raise UsageError(f"The classes file {path} is empty.")
    return _classes(_Part(path, "the file", root))


class _Part:
    """A piece of the file, with the words for it and its line."""

    def __init__(self, path: str, what: str, node: yaml.Node) -> None:
        self._path = path
        self.what = what
        self._node = node

    def wrong(self, why: str) -> UsageError:
        return UsageError(f"{self._path}:{self._node.start_mark.line + 1}: {self.what} {why}.")

    @property
    def value(self) -> Any:
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(self._node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            raise self.wrong(f"cannot be read: {' '.join(str(error).split())}") from error

    def parts(self, known: tuple[str, ...] = ()) -> dict[str, _Part]:
        """Of a mapping, by their names; without `known` any name goes."""
        if not isinstance(self._node, yaml.MappingNode):
            raise self.wrong("must be a mapping of names to values")
        found: dict[str, _Part] = {}
        for key_node, node in self._node.value:
            key = _Part(self._path, f"a name in {self.what}", key_node)
            name = key.value
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise key.wrong(f"may have letters, digits and _.@- and at most 64 of them, unlike {name!r}")
            if known and name not in known:
                meant = closest(name, known)
                hint = f"perhaps {meant} is meant" if meant else f"known are {', '.join(known)}"
                raise key.wrong(f"is unknown: {name}; {hint}")
            if name in found:
                raise key.wrong(f"is there twice: {name}")
            found[name] = _Part(self._path, f"{self.what}, {name}" if known else f"{name} of {self.what}", node)
        return found

    def number(self, least: float = 0.0, above: float | None = None) -> float:
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= _LARGEST:
            raise self.wrong(f"must be a number of at least {least:g}, not {value!r}")
        if above is not None and value <= above:
            raise self.wrong(f"must be above {above:g}, not {value!r}")
        return float(value)

    def whole(self) -> int:
        number = self.number()
        if number != int(number):
            raise self.wrong(f"must be a whole number, not {number!r}")
        return int(number)

    def word(self, allowed: Mapping[str, Any]) -> Any:
        value = self.value
        if not isinstance(value, str) or value not in allowed:
            raise self.wrong(f"must be one of {', '.join(allowed)}, not {value!r}")
        return allowed[value]

    def names(self, allowed: Mapping[str, Any]) -> tuple[str, ...]:
        value = self.value
        if not isinstance(value, list) or not value:
            raise self.wrong("must be a list of classes, the first of which is that of requests that name none")
        if unknown := [name for name in value if not isinstance(name, str) or name not in allowed]:
            raise self.wrong(f"names a class that is not there: {unknown[0]}")
        return tuple(dict.fromkeys(value))

    def digest(self) -> str:
        value = self.value
        if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
            raise self.wrong("must be 64 hexadecimal digits, as `printf %s KEY | sha256sum` prints them")
        return value


_Reader = Callable[[_Part], Any]


def _classes(root: _Part) -> Classes:
    parts = root.parts(("tenant", "classes", "tenants", OTHERS))
    if "classes" not in parts:
        raise root.wrong("has no classes")
    header = _tenant_header(parts["tenant"]) if "tenant" in parts else ""
    classes = {name: _class(name, part) for name, part in parts["classes"].parts().items()}
    if not classes:
        raise parts["classes"].wrong("has none in it")
    tenants = parts["tenants"].parts() if "tenants" in parts else {}
    if len(tenants) > MOST_TENANTS:
        raise parts["tenants"].wrong(f"has more than {MOST_TENANTS} tenants")
    if OTHERS in tenants:
        raise tenants[OTHERS].wrong("must have another name: it is that of all who are not listed")
    if not tenants and OTHERS not in parts:
        raise root.wrong(f"has neither tenants nor {OTHERS}: nobody would be served")
    listed = {name: _tenant(name, part, classes, by_key=not header) for name, part in tenants.items()}
    _refuse_shared_keys(listed, tenants)
    others = _tenant(OTHERS, parts[OTHERS], classes, by_key=False) if OTHERS in parts else None
    return Classes(classes=classes, tenants=listed, others=others, tenant_header=header)


def _tenant_header(part: _Part) -> str:
    value = part.value
    header = value.removeprefix(_HEADER) if isinstance(value, str) else ""
    if value == "key":
        return ""
    if header == value or not _HEADER_NAME.fullmatch(header):
        raise part.wrong(f"must be key, or {_HEADER}NAME, not {value!r}")
    return header


def _class(name: str, part: _Part) -> ServiceClass:
    readers: dict[str, _Reader] = {
        "ttft_s": lambda each: each.number(above=0),
        "tpot_s": lambda each: each.number(above=0),
        "share": lambda each: each.number(above=0),
        "priority": lambda each: each.word({"high": HIGH, "normal": NORMAL}),
        "max_held": _most_held,
        "max_hold_s": _Part.number,
    }
    said: dict[str, Any] = {key: readers[key](each) for key, each in part.parts(tuple(readers)).items()}
    said.setdefault("max_hold_s", said.get("ttft_s", DEFAULT_HOLD_S))
    return ServiceClass(name=name, **said)


def _most_held(part: _Part) -> int:
    most = part.whole()
    if not most:
        raise part.wrong("must be at least 1; where no request is to wait for its turn, say max_hold_s: 0")
    return most


def _tenant(name: str, part: _Part, classes: Mapping[str, ServiceClass], by_key: bool) -> TenantTerms:
    readers: dict[str, _Reader] = {
        **({"key_sha256": _Part.digest} if by_key else {}),
        "classes": lambda each: each.names(classes),
        "weight": lambda each: each.number(above=0),
        "requests_per_minute": _Part.number,
        "tokens_per_minute": _Part.number,
        "concurrent": _Part.whole,
    }
    said = {key: readers[key](each) for key, each in part.parts(tuple(readers)).items()}
    for needed in ("key_sha256", "classes") if by_key else ("classes",):
        if needed not in said:
            raise part.wrong(f"has no {needed}")
    return TenantTerms(name=name, **said)


def _refuse_shared_keys(listed: Mapping[str, TenantTerms], parts: Mapping[str, _Part]) -> None:
    owners: dict[str, str] = {}
    for name, tenant in listed.items():
        if tenant.key_sha256 and tenant.key_sha256 in owners:
            raise parts[name].wrong(f"has the key of {owners[tenant.key_sha256]}")
        owners[tenant.key_sha256] = name
