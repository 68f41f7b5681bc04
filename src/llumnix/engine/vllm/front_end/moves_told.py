"""Moves of streams, told when both are known: what the client saw of one, and what the old owner says of it.

Tokens of the new one come as soon as it has the request; the old one's word may take a step of its engine, and the
stream may be over by then.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from llumnix.control.messages import AnyNotice, Moved, Stayed
from llumnix.engine.vllm.front_end.client_access import Observer
from llumnix.engine.vllm.front_end.session import Session
from llumnix.types import InstanceId

MOST_ENDED = 1024
"""Streams that are over and wait for a word; beyond, the oldest waits no more."""


class _Ended(NamedTuple):
    session: Session
    at_s: float
    outcome: str
    why: str


class MovesTold:
    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._ended: dict[str, _Ended] = {}

    def first_token(self, session: Session, downtime_s: float, now: float) -> None:
        """From the new owner."""
        if session.move is None:
            session.saw_move(now, downtime_s)
        else:
            self._tell(session, session.move, downtime_s, now)

    def noticed(self, session: Session | None, notice: AnyNotice, now: float) -> None:
        """`session`: of the stream that it speaks of, if that is not over."""
        if isinstance(notice, Moved):
            self._moved(session, notice, now)
        elif session is not None and isinstance(notice, Stayed):
            self._observer.stayed(session, notice)
            session.story.stayed(now, notice.outcome)

    def _moved(self, session: Session | None, notice: Moved, now: float) -> None:
        """The old owner's word."""
        if session is None:
            self._moved_before_its_end(notice, now)
        elif notice.epoch in session.seen:
            _, at_s, downtime_s = session.seen.pop(notice.epoch)
            self._tell(session, notice, downtime_s, now, now - at_s)
        else:
            if session.passed is None or notice.epoch != session.passed.epoch:
                self.give_up(session, now)  # an earlier one whose first token never came
                session.passes(notice.epoch, notice.sender, now)
            session.move = notice
            if notice.epoch in session.seen:  # it has said nothing yet: no gap to wait for
                del session.seen[notice.epoch]
                self.give_up(session, now)

    def give_up(self, session: Session, now: float) -> None:
        """No first token will come."""
        if session.move is not None:
            self._tell(session, session.move, None, now)

    def over(self, session: Session, now: float, outcome: str, why: str) -> None:
        """Its story ends as soon as nothing of it is to be told any more."""
        self.give_up(session, now)
        self._ended[session.engine_id] = _Ended(session, now, outcome, why)
        if not session.seen:
            self._close(session.engine_id)
        elif len(self._ended) > MOST_ENDED:
            self._close(next(iter(self._ended)))

    def departed(self, instance: InstanceId, sessions: Iterable[Session]) -> None:
        """It says nothing any more."""
        for session in sessions:
            session.forget_words_of(instance)
        for request, ended in list(self._ended.items()):
            ended.session.forget_words_of(instance)
            if not ended.session.seen:
                self._close(request)

    def _moved_before_its_end(self, notice: Moved, now: float) -> None:
        ended = self._ended.get(notice.request)
        if ended is not None and notice.epoch in ended.session.seen:
            _, at_s, downtime_s = ended.session.seen.pop(notice.epoch)
            self._tell(ended.session, notice, downtime_s, ended.at_s, now - at_s)
            if not ended.session.seen:
                self._close(notice.request)

    def _close(self, request: str) -> None:
        session, at_s, outcome, why = self._ended.pop(request)
        session.story.ended(at_s, outcome, len(session.tokens), why)
        self._observer.ended(session)

    def _tell(self, session: Session, notice: Moved, downtime_s: float | None, now: float, ago_s: float = 0.0) -> None:
        self._observer.moved(session, notice, downtime_s, ago_s)
        session.story.moved(now, notice.outcome, downtime_s)
        session.move = None
