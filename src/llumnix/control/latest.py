"""What is remembered of late: so many entries, of which the oldest makes room for a new one."""

from __future__ import annotations

from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Latest(dict[Key, Value]):
    """At most `most` entries. One that is set again stays as old as it was, unless it was taken out before.

    Only `[key] = value` looks at the bound: `update`, `setdefault` and `|=` are not for this one.
    """

    __slots__ = ("_most",)

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: Key, value: Value) -> None:
        super().__setitem__(key, value)
        if len(self) > self._most:
            del self[next(iter(self))]
