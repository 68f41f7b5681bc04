"""How much a part of Llumnix holds: the sizes of all containers that can be reached from it, by who owns them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any

_CONTAINERS = (dict, list, set, frozenset, tuple, deque)


def sizes(*roots: object) -> dict[str, int]:
    """The largest container for each owner and attribute, such as `Dispatcher._entries`; `[]` for one within it."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    todo: list[tuple[object, str]] = [(root, "") for root in roots]
    while todo:
        thing, name = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, SimpleQueue):
            found[name] = max(found.get(name, 0), thing.qsize())
        elif isinstance(thing, _CONTAINERS) and not hasattr(thing, "_fields"):
            found[name] = max(found.get(name, 0), len(thing))
            todo += [(each, f"{name}[]") for each in _items(thing)]
        todo += _attributes(thing)
    return found


def _items(container: Any) -> Iterable[object]:
    return [*container.keys(), *container.values()] if isinstance(container, dict) else list(container)


def _attributes(thing: object) -> Iterator[tuple[object, str]]:
    if isinstance(thing, partial):
        yield from ((each, "partial") for each in (thing.func, thing.args, thing.keywords))
    if (owner := getattr(thing, "__self__", None)) is not None:  # a bound method
        yield owner, ""
    kind = type(thing)
    if not kind.__module__.startswith("llumnix."):
        return
    names = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
    for name in {*names, *getattr(kind, "__struct_fields__", ()), *getattr(thing, "__dict__", ())}:
        value = getattr(thing, name, None)
        if value is not None:
            yield value, f"{kind.__name__}.{name}"


def larger_than(limit: int, bounds: dict[str, int], *roots: object) -> dict[str, int]:
    """Those that hold more than `limit`, or than their own bound."""
    return {name: size for name, size in sizes(*roots).items() if size > bounds.get(name, limit)}
