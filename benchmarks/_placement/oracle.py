"""The same rule with exact knowledge: at each decision it looks into the caches, where ours goes by what it was told.

Live there is no such thing: an eviction is known here at once, without a sweep, a message, or its way.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from unittest import mock

from llumnix.control import dispatcher
from llumnix.control.prefix_index import PrefixIndex
from llumnix.control.prefix_table import PrefixNews
from llumnix.policy.prefix import ChunkId
from llumnix.sim import launcher
from llumnix.sim.instance import SimInstance
from llumnix.types import InstanceId


class Oracle(PrefixIndex):
    """`instances`: all that were started so far."""

    def __init__(self, instances: Sequence[SimInstance]) -> None:
        super().__init__()
        self._instances = instances
        self._on_its_way: defaultdict[InstanceId, Counter[ChunkId]] = defaultdict(Counter)

    def hear(self, instance: InstanceId, news: PrefixNews) -> bool:
        return True

    def sent(self, instance: InstanceId, ids: Sequence[ChunkId]) -> None:
        self._on_its_way[instance].update(ids)

    def counted(self, instance: InstanceId, ids: Sequence[ChunkId]) -> None:
        self._on_its_way[instance].subtract(ids)

    def remove(self, instance: InstanceId) -> None:
        self._on_its_way.pop(instance, None)

    def depths(self, ids: Sequence[ChunkId]) -> dict[InstanceId, int]:
        depths = {each.id: self._depth(each, ids) for each in self._instances if each.account.alive}
        return dict(sorted(((name, depth) for name, depth in depths.items() if depth), key=lambda item: item[1]))

    def _depth(self, instance: SimInstance, ids: Sequence[ChunkId]) -> int:
        """What is cached there, and what will be when those that came or are sent before have been computed."""
        engine, on_its_way = instance.engine, self._on_its_way[instance.id]
        cache = engine.pool.cache
        assert cache is not None
        coming = {unit for request in [*engine.waiting, *engine.prefilling] for unit in request.hashes}
        missing = (i for i, unit in enumerate(ids) if not (cache.has(unit) or unit in coming or on_its_way[unit] > 0))
        return next(missing, len(ids))


@contextmanager
def looking_into_caches() -> Iterator[None]:
    """Front ends of runs that begin within it are such."""
    instances: list[SimInstance] = []

    class Seen(SimInstance):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            instances.append(self)

    with (
        mock.patch.object(launcher, "SimInstance", Seen),
        mock.patch.object(dispatcher, "PrefixIndex", partial(Oracle, instances)),
    ):
        yield
