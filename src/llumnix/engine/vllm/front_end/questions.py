"""Questions of a front end to other processes. Each carries a number and has a deadline; who does not answer in time is
left out of the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from msgspec.structs import replace

from llumnix.engine.vllm.front_end.numbers import numbers
from llumnix.wire.news import ReadJournal
from llumnix.wire.outbox import Mail
from llumnix.wire.to_front_end import (
    AnswerToFrontEnd,
    DoYourPart,
    ListClasses,
    ListMigrations,
    MigrateByHand,
    Migrations,
    TellStory,
)
from llumnix.wire.to_instance import ListRequests
from llumnix.wire.to_scheduler import Wish

AnyQuestion = ListRequests | ListMigrations | ListClasses | TellStory | ReadJournal | DoYourPart | MigrateByHand | Wish
"""Without the number and the address, which are given to each that is sent."""


class _Asked(NamedTuple):
    address: str
    inbox: asyncio.Queue[tuple[int, Any | None]]
    """Of the whole question: answers by their numbers; None instead of one: it will not come (any more)."""


class Questions:
    """All methods run on the front end's event loop."""

    def __init__(self, post: Callable[[str, Mail], None], address: str) -> None:
        """`address`: of the mailbox that hears the answers, and has them `answered`."""
        self._post = post
        self._address = address
        self._numbers = numbers()
        self._open: dict[int, _Asked] = {}

    async def ask(self, addresses: Iterable[str], question: AnyQuestion, timeout_s: float) -> list[Any]:
        """The answers of these mailboxes."""
        inbox: asyncio.Queue[tuple[int, Any | None]] = asyncio.Queue()
        asked = {next(self._numbers): _Asked(address, inbox) for address in addresses}
        self._open |= asked
        answers: list[Any] = []
        left = set(asked)
        try:
            for number, (address, _) in asked.items():
                self._post(address, replace(question, query=number, reply_to=self._address))
            async with asyncio.timeout(timeout_s):
                while left:
                    number, answer = await inbox.get()
                    if not (isinstance(answer, Migrations) and answer.more):
                        left.discard(number)
                    if answer is not None:
                        answers.append(answer)
        except TimeoutError:
            pass
        finally:
            for number in asked:
                del self._open[number]
        return answers

    def answered(self, answer: AnswerToFrontEnd) -> None:
        asked = self._open.get(answer.query)
        if asked is not None:  # else it came too late
            asked.inbox.put_nowait((answer.query, answer))

    def answers_no_more(self, address: str) -> None:
        """The process that had this mailbox died."""
        for number, asked in self._open.items():
            if asked.address == address:
                asked.inbox.put_nowait((number, None))
