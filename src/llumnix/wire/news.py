"""What several processes hear."""

from __future__ import annotations

from math import inf

from llumnix.journal.journal import EntryFilter
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId
from llumnix.wire.base import InstanceInfo, Question, Wire


class Report(Wire, frozen=True, kw_only=True, tag=True):
    """Load, heartbeat and introduction in one: whoever hears the first one knows the instance."""

    info: InstanceInfo
    snapshot: InstanceSnapshot


class InstanceStarting(Wire, frozen=True, kw_only=True, tag=True):
    """The launcher started a process; its first report follows when it can serve."""

    instance: InstanceId
    pid: int
    node: str


class InstanceGone(Wire, frozen=True, kw_only=True, tag=True):
    """The instance will never speak again: it exited, or is fenced. Sent to everybody."""

    instance: InstanceId
    index: int
    why: str
    expected: bool
    """True after a drain or a stop; False if it died or stalled."""


class ReadJournal(Question, frozen=True, kw_only=True, tag=True):
    """From a front end to whoever keeps a journal; answered with a `JournalRead`."""

    places: dict[str, int] | None
    """Of the reader, by journal; None: it has none, and wants what happened last."""
    limit: int
    wanted: EntryFilter


class FrontEndLost(Wire, frozen=True, kw_only=True, tag=True):
    """The front end died; its requests have no reader any more and are aborted, and it answers no question."""

    front_end: int
    until_unix_s: float = inf
    """A request that arrived later, by the front ends' clock, is of the one that took its place: this may come late."""
