"""The instances that are gone for good, as far back as anybody can still hear of them."""

from __future__ import annotations

from llumnix.control.latest import Latest
from llumnix.types import InstanceId

REMEMBERED = 4096
"""Ids never come back, but messages that were on their way may: nothing of so many losses ago is still under way."""


class GoneIds:
    """A set that forgets its oldest member when it is full."""

    def __init__(self) -> None:
        self._ids: Latest[InstanceId, None] = Latest(REMEMBERED)

    def add(self, instance: InstanceId) -> None:
        self._ids[instance] = None

    def __contains__(self, instance: InstanceId) -> bool:
        return instance in self._ids

    def __len__(self) -> int:
        return len(self._ids)
