"""The last hour in numbers, in the same few kilobytes however long a server runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from llumnix.api.frames import ClusterSample, HistoryAnswer
from llumnix.engine.vllm.front_end.gauges import freeness_of
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, InstanceState

FINE, COARSE, FINE_PER_COARSE = 300, 360, 10
"""Numbers that are kept one by one, those that stand for ten each, and how many that is."""

_CLUSTER = ClusterSample.__struct_fields__[1:]
_INSTANCE = ("memory", "running", "waiting", "freeness")


class Track:
    """Rows of numbers that were added at regular intervals: the last ones one by one, older ones as means of ten."""

    def __init__(self, width: int, count: int = 0) -> None:
        """`count`: rows that others have before it begins."""
        self._fine = np.full((FINE, width), np.nan)
        self._coarse = np.full((COARSE, width), np.nan)
        self._count = count

    def add(self, row: Sequence[float | None]) -> None:
        self._fine[self._count % FINE] = [np.nan if value is None else value for value in row]
        self._count += 1
        if self._count % FINE_PER_COARSE == 0:
            first = (self._count - FINE_PER_COARSE) % FINE
            self._coarse[(self._count // FINE_PER_COARSE - 1) % COARSE] = _means(
                self._fine[first : first + FINE_PER_COARSE]
            )

    def rows(self) -> NDArray[np.float64]:
        """Oldest first: means of what is no longer there one by one, then the rest."""
        fine = _in_order(self._fine, self._count)
        means = self._count // FINE_PER_COARSE
        covered = -(-len(fine) // FINE_PER_COARSE)  # the last means tell of what is there one by one
        coarse = _in_order(self._coarse, means)
        return np.concatenate([coarse[: max(0, len(coarse) - covered)], fine])


def _means(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of what is known: NaN where nothing is."""
    known = np.isfinite(rows)
    counts = known.sum(axis=0)
    sums = np.where(known, rows, 0.0).sum(axis=0)
    return np.where(counts, sums / np.maximum(counts, 1), np.nan)


def _in_order(ring: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.roll(ring, -(count % len(ring)), axis=0) if count >= len(ring) else ring[:count]


class History:
    """Of the cluster, and of each instance that is there."""

    def __init__(self) -> None:
        self._count = 0
        self._cluster = Track(1 + len(_CLUSTER))
        self._instances: dict[InstanceId, Track] = {}
        self._ahead_s = 0.0
        """By how much the clock since 1970 is ahead of the other one. All that was is told by it as it is now."""
        self._before: tuple[float, dict[InstanceId, InstanceSnapshot]] | None = None

    def sample(self, at: float, now_s: float, loads: Mapping[InstanceId, InstanceSnapshot]) -> ClusterSample:
        """Takes note of what instances report now. `at`: seconds since 1970, by a clock that may be set; `now_s`: by
        one that is not."""
        sample = _sample(at, now_s, loads, self._before)
        self._before = now_s, dict(loads)
        self._ahead_s = at - now_s
        self._cluster.add((now_s, *msgspec.structs.astuple(sample)[1:]))
        self._instances = {
            instance: self._instances.get(instance) or Track(len(_INSTANCE), self._count) for instance in loads
        }
        for instance, load in loads.items():
            self._instances[instance].add([_memory(load), load.running, load.waiting, freeness_of(load)])
        self._count += 1
        return sample

    def of_cluster(self) -> HistoryAnswer:
        rows = self._cluster.rows()
        return HistoryAnswer(of="cluster", at=self._times(rows), series=_series(_CLUSTER, rows[:, 1:]))

    def of(self, instance: InstanceId) -> HistoryAnswer | None:
        """None for one that is not there."""
        track = self._instances.get(instance)
        if track is None:
            return None
        return HistoryAnswer(of=instance, at=self._times(self._cluster.rows()), series=_series(_INSTANCE, track.rows()))

    def _times(self, rows: NDArray[np.float64]) -> list[float]:
        times: list[float] = (rows[:, 0] + self._ahead_s).round(3).tolist()
        return times


def _series(names: Sequence[str], rows: NDArray[np.float64]) -> dict[str, list[float | None]]:
    """Null where nothing is known. Not number by number: these are thousands, and a token would wait for them."""
    values = rows.round(4).astype(object)
    values[np.isnan(rows)] = None
    return dict(zip(names, values.T.tolist(), strict=True))


def _memory(load: InstanceSnapshot) -> float | None:
    return 1 - load.free_blocks / load.total_blocks if load.total_blocks else None


def _sample(
    at: float,
    now_s: float,
    loads: Mapping[InstanceId, InstanceSnapshot],
    before: tuple[float, Mapping[InstanceId, InstanceSnapshot]] | None,
) -> ClusterSample:
    shares = [share for load in loads.values() if (share := _memory(load)) is not None]
    total = sum(load.total_blocks for load in loads.values())
    serving = [load for load in loads.values() if load.state is InstanceState.RUNNING]
    since_s, earlier = before or (now_s, {})
    ended = moved = 0
    for instance, load in loads.items():
        if (known := earlier.get(instance)) is not None:
            ended += load.ended - known.ended
            moved += load.migrations_in - known.migrations_in
    passed_s = max(now_s - since_s, 1e-3)
    return ClusterSample(
        at=at,
        instances=len(loads),
        memory=1 - sum(load.free_blocks for load in loads.values()) / total if total else None,
        memory_least=min(shares, default=None),
        memory_most=max(shares, default=None),
        running=sum(load.running for load in loads.values()),
        waiting=sum(load.waiting for load in loads.values()),
        freeness=min((free for load in serving if (free := freeness_of(load)) is not None), default=None),
        requests_per_s=round(max(0, ended) / passed_s, 3),
        moves_per_s=round(max(0, moved) / passed_s, 3),
    )
