"""What becomes of a front end's streams: every move is recorded, replays and failures are counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import time

from llumnix.control.front_end_events import ReplayAt
from llumnix.control.messages import Moved, Stayed
from llumnix.control.orders import MoveOutcome
from llumnix.engine.vllm.front_end.client_ids import client_visible_id
from llumnix.engine.vllm.front_end.metrics import Metrics
from llumnix.engine.vllm.front_end.migration_log import MigrationLog
from llumnix.engine.vllm.front_end.recorder import Recorder
from llumnix.engine.vllm.front_end.session import Session
from llumnix.journal.journal import Journal
from llumnix.journal.stories import Stories
from llumnix.report.records import MigrationRecord, migration_record


class StreamLog:
    """The observer of the streams (streams.py)."""

    def __init__(self, journal: Journal, close_journal: Callable[[], None] = lambda: None) -> None:
        """`close_journal`: at the end (`begin_journal`)."""
        self.stories = Stories(journal)
        self._close_journal = close_journal
        self.moves = MigrationLog()
        self.metrics = Metrics()
        self.recorder: Recorder | None = None
        """With `--record`."""
        self._awaited: dict[str, asyncio.Future[MigrationRecord]] = {}  # by engine id

    def replayed(self, replay: ReplayAt) -> None:
        self.metrics.replay(replay)

    def failed(self, session: Session, why: str) -> None:
        self.metrics.given_up.inc()

    def stayed(self, session: Session, notice: Stayed) -> None:
        self._keep(session, notice.outcome)

    def moved(self, session: Session, notice: Moved, downtime_s: float | None, ago_s: float) -> None:
        self._keep(session, notice.outcome, downtime_s, ago_s)

    def ended(self, session: Session) -> None:
        self.stories.over(session.story)
        if self.recorder is not None:
            self.recorder.ended(session)

    def close(self) -> None:
        """All that was to be written is."""
        if self.recorder is not None:
            self.recorder.close()
        self._close_journal()

    def is_awaited(self, engine_id: str) -> bool:
        return engine_id in self._awaited

    @contextmanager
    def next_move(self, engine_id: str) -> Iterator[asyncio.Future[MigrationRecord]]:
        """Gets the record of the request's next move, if there is one. One at a time may wait for it."""
        self._awaited[engine_id] = record = asyncio.get_running_loop().create_future()
        try:
            yield record
        finally:
            del self._awaited[engine_id]

    def _keep(
        self, session: Session, outcome: MoveOutcome, downtime_s: float | None = None, ago_s: float = 0.0
    ) -> None:
        record = record_of(session, outcome, downtime_s, ago_s)
        self.moves.add(record)
        self.metrics.migration(outcome, downtime_s)
        if self.recorder is not None:
            self.recorder.tried(session, record)
        awaited = self._awaited.get(session.engine_id)
        if outcome.ok and awaited is not None and not awaited.done():
            awaited.set_result(record)


def record_of(
    session: Session, outcome: MoveOutcome, downtime_s: float | None = None, ago_s: float = 0.0
) -> MigrationRecord:
    return migration_record(time() - ago_s, client_visible_id(session.client_id), outcome, downtime_s)
