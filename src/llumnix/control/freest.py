"""The instances from the freest to the fullest, and then those for prompts, kept in order as reports come.

Who looks for an instance that can take a request at once asks the first few: that costs the same in a cluster of any
size. Those for prompts are the freest mostly, as they give away whoever decodes, and so are the last to be given any.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from llumnix.control.cluster_view import ClusterView
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.virtual_usage import migration_freeness
from llumnix.types import InstanceId, Role


class Freest:
    """In order of freeness by the last reports. What `first` yields counts what was ordered and promised since, so the
    first of them may have next to no room left: who looks for the freest looks at all that are given."""

    def __init__(self, view: ClusterView, priority_target_tokens: int | None) -> None:
        self._view = view
        self.priority_target_tokens = priority_target_tokens
        self._order: list[tuple[bool, float, InstanceId]] = []
        self._keys: dict[InstanceId, tuple[bool, float, InstanceId]] = {}

    def read(self, report: InstanceSnapshot) -> None:
        freeness = migration_freeness(report, self.priority_target_tokens)
        key = (report.role is Role.PREFILL, -freeness, report.id)
        if self._keys.get(report.id) != key:
            self.forget(report.id)
            insort(self._order, key)
            self._keys[report.id] = key

    def forget(self, instance: InstanceId) -> None:
        key = self._keys.pop(instance, None)
        if key is not None:
            del self._order[bisect_left(self._order, key)]

    def first(self, most: int) -> Iterator[InstanceSnapshot]:
        for _, _, instance in self._order[:most]:
            snapshot = self._view.as_target(instance)
            if snapshot is not None:
                yield snapshot
