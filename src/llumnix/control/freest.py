"""The instances from the freest to the fullest, kept in order as reports come.

Who looks for an instance that can take a request at once asks the first few: that costs the same in a cluster of any
size.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from llumnix.control.cluster_view import ClusterView
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.virtual_usage import migration_freeness
from llumnix.types import InstanceId


class Freest:
    """Orders are by the last reports; what `first` yields counts what was ordered since."""

    def __init__(self, view: ClusterView, priority_target_tokens: int | None) -> None:
        self._view = view
        self.priority_target_tokens = priority_target_tokens
        self._order: list[tuple[float, InstanceId]] = []
        self._keys: dict[InstanceId, tuple[float, InstanceId]] = {}

    def read(self, report: InstanceSnapshot) -> None:
        key = (-migration_freeness(report, self.priority_target_tokens), report.id)
        if self._keys.get(report.id) != key:
            self.forget(report.id)
            insort(self._order, key)
            self._keys[report.id] = key

    def forget(self, instance: InstanceId) -> None:
        key = self._keys.pop(instance, None)
        if key is not None:
            del self._order[bisect_left(self._order, key)]

    def first(self, most: int) -> Iterator[InstanceSnapshot]:
        for _, instance in self._order[:most]:
            snapshot = self._view.look(instance)
            if snapshot is not None:
                yield snapshot
