"""The moves of one front end's streams: a bounded list, newest last."""

from __future__ import annotations

from collections import deque
from itertools import islice

from llumnix.report.records import MigrationRecord

_REMEMBERED = 100_000


class MigrationLog:
    def __init__(self) -> None:
        self._records: deque[MigrationRecord] = deque(maxlen=_REMEMBERED)

    def add(self, record: MigrationRecord) -> None:
        self._records.append(record)

    def newest(self, limit: int) -> list[MigrationRecord]:
        """At most `limit` records, newest first."""
        return list(islice(reversed(self._records), limit))
