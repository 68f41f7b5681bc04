"""Questions of a front end to other processes. Each carries a number and has a deadline; who does not answer in time is
left out of the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from llumnix.engine.vllm.front_end.numbers import numbers
from llumnix.wire.outbox import Mail
from llumnix.wire.to_front_end import AnswerToFrontEnd, Migrations


@dataclass(slots=True)
class _Question:
    """One that is being asked."""

    asked: frozenset[str]
    """The mailboxes that are to answer."""
    inbox: asyncio.Queue[Any | None] = field(default_factory=asyncio.Queue)
    """None: one of those that are asked will not answer any more."""


class Questions:
    """All methods run on the front end's event loop."""

    def __init__(self, post: Callable[[str, Mail], None]) -> None:
        self._post = post
        self._numbers = numbers()
        self._open: dict[int, _Question] = {}

    async def ask(self, addresses: Iterable[str], make: Callable[[int], Mail], timeout_s: float) -> list[Any]:
        """The answers of these mailboxes to what `make` makes of the question's number."""
        asked = list(addresses)
        query = next(self._numbers)
        question = self._open[query] = _Question(frozenset(asked))
        answers: list[Any] = []
        left = len(asked)
        try:
            message = make(query)
            for address in asked:
                self._post(address, message)
            async with asyncio.timeout(timeout_s):
                while left:
                    answer = await question.inbox.get()
                    left -= not (isinstance(answer, Migrations) and answer.more)
                    if answer is not None:
                        answers.append(answer)
        except TimeoutError:
            pass
        finally:
            del self._open[query]
        return answers

    def answered(self, answer: AnswerToFrontEnd) -> None:
        question = self._open.get(answer.query)
        if question is not None:  # else it came too late
            question.inbox.put_nowait(answer)

    def answers_no_more(self, address: str) -> None:
        """The process that had this mailbox died."""
        for question in self._open.values():
            if address in question.asked:
                question.inbox.put_nowait(None)
