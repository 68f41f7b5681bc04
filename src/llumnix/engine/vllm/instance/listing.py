"""Answers to who asks for all requests of an instance: made a few rows at a time, so that no batch stands still for ten
thousand of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from math import inf

from llumnix.wire.to_front_end import RequestRow
from llumnix.wire.to_instance import ListRequests

SHARE = 0.02
"""Of the time that passes between two turns."""

_SHORTEST_TURN_S = 0.0002
_LONGEST_TURN_S = 0.005  # after a sleep much time has passed that was no step's
_ROWS_AT_ONCE = 16
_QUESTIONS = 16


class Listing:
    """`rows(like)` makes the rows one by one. Called on the engine's main thread only."""

    def __init__(
        self,
        rows: Callable[[str], Iterator[RequestRow]],
        answer: Callable[[ListRequests, tuple[RequestRow, ...]], None],
        clock: Callable[[], float],
    ) -> None:
        self._rows_like = rows
        self._answer = answer
        self._clock = clock
        self._questions: deque[ListRequests] = deque(maxlen=_QUESTIONS)  # who asked longest ago has given up
        self._under_way: tuple[ListRequests, Iterator[RequestRow], list[RequestRow]] | None = None
        self._last_turn_s = clock()

    def ask(self, question: ListRequests) -> None:
        self._questions.append(question)

    def go_on(self) -> None:
        """Between two steps: makes as many rows as a small part of the step's time allows."""
        now = self._clock()
        between_s, self._last_turn_s = now - self._last_turn_s, now
        if self._under_way or self._questions:
            self._make_until(now + min(_LONGEST_TURN_S, max(_SHORTEST_TURN_S, SHARE * between_s)))

    def finish(self) -> None:
        """Nothing else is to be done."""
        self._make_until(inf)

    def _make_until(self, deadline_s: float) -> None:
        while self._under_way or self._questions:
            if self._under_way is None:
                question = self._questions.popleft()
                self._under_way = question, self._rows_like(question.like), []
            question, rows, made = self._under_way
            some = list(islice(rows, _ROWS_AT_ONCE))
            made += some
            if not some:
                self._under_way = None
                self._answer(question, tuple(made))
            if self._clock() >= deadline_s:
                return
