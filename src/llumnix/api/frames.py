"""What the streams of the admin API tell, event by event, and the past that stands beside it.

An event holds what has changed since the one before. The first of a stream is whole, and so is one after some that a
slow reader missed: it replaces all that was told before.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from llumnix.api.bodies import ClientRequest, FreenessLimits, InstanceRow, ScalingRow, SchedulerRow
from llumnix.report.records import MigrationRecord
from llumnix.types import InstanceId


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What stays as it is while a front end lives."""

    version: str
    """Of Llumnix."""
    vllm: str
    """Its version."""
    model: str
    """As clients have to call it."""
    policy: str
    migration: bool
    """Whether requests are moved without being asked."""
    front_ends: int
    front_end: int
    """The one that tells this."""
    since_s: float
    """When it began to remember, in seconds since 1970."""
    acts: bool
    """Whether the page offers to do something (`--page on`)."""
    records: bool = False
    """Whether it was started with `--record`."""
    example_path: str | None
    """Where a first request may go to; null on a port that has the admin routes alone."""


class ClusterSample(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster in one number each, over the instances that serve or drain; null where there is none."""

    at: float
    """Seconds since 1970."""
    instances: int
    memory: float | None
    """Share of KV blocks in use, from 0 to 1: of all instances together."""
    memory_least: float | None
    """Of the emptiest instance."""
    memory_most: float | None
    """Of the fullest one."""
    running: int
    waiting: int
    freeness: float | None
    """The lowest of an instance that takes requests."""
    requests_per_s: float
    """That ended, since the sample before."""
    moves_per_s: float
    """Requests that arrived on an instance by migration."""


class ClusterFrame(msgspec.Struct, frozen=True, kw_only=True):
    """What changed. `instances` has whole rows, of those that are new or different."""

    whole: bool
    at: float
    """Seconds since 1970."""
    server: ServerFacts | UnsetType = UNSET
    """In whole frames only."""
    instances: list[InstanceRow]
    away: list[InstanceId]
    """Rows that are no longer there."""
    scheduler: SchedulerRow | UnsetType = UNSET
    scaling: ScalingRow | UnsetType | None = UNSET
    freeness_limits: FreenessLimits | UnsetType = UNSET
    moves: list[MigrationRecord]
    """Attempts to move a request that are new, newest first; in a whole frame the last hundred."""
    sample: ClusterSample | UnsetType = UNSET
    """When there is a new one, once a second."""


class SequenceRow(ClientRequest, frozen=True, kw_only=True):
    """A sequence with a key of its own: the same of all its rows, in whichever frame."""

    key: str


class RequestsFrame(msgspec.Struct, frozen=True, kw_only=True):
    """What changed among the requests: at most the 500 with the most tokens are told of."""

    whole: bool
    at: float
    total: int
    """Of all that run or wait."""
    requests: list[SequenceRow]
    away: list[str]
    """Keys of rows that are no longer told of."""


class HistoryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The past, oldest first: each second of the last five minutes, and before that every ten seconds of an hour."""

    of: Literal["cluster"] | InstanceId
    at: list[float]
    """Seconds since 1970."""
    series: dict[str, list[float | None]]
    """As many numbers each; null where there is none. The names are those of a `ClusterSample`; of an instance
    `memory`, `running`, `waiting` and `freeness`."""
