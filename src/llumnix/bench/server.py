"""What a load run asks of the server beside completions: its model, its instances, its migrations.

The `/llumnix/v1/` routes are ours; where a server does not have them, there is nothing to record.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from time import time
from typing import TypeVar

import aiohttp
import msgspec

from llumnix.api.bodies import InstancesAnswer, MigrationsAnswer
from llumnix.api.routes import PREFIX
from llumnix.errors import ServerRefused, UsageError
from llumnix.remote import WANTS_KEY, no_answer
from llumnix.report.records import InstanceRecord, MigrationRecord
from llumnix.report.summary import exists
from llumnix.types import InstanceState

MOST_MIGRATIONS = 1_000_000
QUERY_TIMEOUT_S = 10.0
SAMPLE_INTERVAL_S = 1.0
SAME_CLOCK_S = 3.0
"""The time in an answer is in whole seconds, and some time on its way."""

AnswerT = TypeVar("AnswerT")


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class Server:
    """The queries of one run, all to one server, with the same headers."""

    def __init__(self, session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> None:
        self._session, self._url, self._headers = session, url, dict(headers)
        self._ahead_s = 0.0
        """Its clock, of ours, by what it said last."""

    async def model(self, name: str | None) -> tuple[str, int | None]:
        """The model to ask for (`name`, or the first one served) and its longest sequence if the server says.

        Raises ServerRefused if nothing answers there, or not as an OpenAI server does, and UsageError if it wants a key
        or does not serve the model.
        """
        try:
            answer = await self._get("/v1/models")
            models = msgspec.json.decode(answer, type=_Models).data
        except aiohttp.ClientResponseError as error:
            if error.status == HTTPStatus.UNAUTHORIZED:
                raise UsageError(WANTS_KEY) from error
            raise ServerRefused(f"{self._url}/v1/models answers with HTTP {error.status}.") from error
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            late = isinstance(error, TimeoutError)
            broken = not isinstance(error, aiohttp.ClientConnectorError)
            raise no_answer(self._url, error, late=late, broken=broken) from error
        except ValueError as error:
            raise ServerRefused(f"{self._url} is not an OpenAI-compatible server.") from error
        served = {model.id: model.max_model_len for model in models}
        if not served:
            raise ServerRefused(f"{self._url} serves no model.")
        name = name or next(iter(served))
        if name not in served:
            raise UsageError(f"{self._url} does not serve {name}; it serves {', '.join(served)}.")
        return name, served[name]

    async def instances(self, at_s: float) -> list[InstanceRecord] | None:
        """The load of every instance, stamped `at_s`; None if the server did not say (this time or at all)."""
        rows = await self._ask("/instances", InstancesAnswer)
        if rows is None:
            return None
        return [
            InstanceRecord(
                at_s=at_s,
                instance=row.id,
                state=row.state,
                running=row.running,
                waiting=row.waiting,
                free_blocks=row.free_blocks,
                total_blocks=row.total_blocks,
                # JSON has no infinity: null stands for it.
                freeness=-math.inf if row.freeness is None else row.freeness,
                preemptions=row.preemptions,
                preemptions_avoided=row.preemptions_avoided,
                recompute_tokens_saved=row.recompute_tokens_saved,
            )
            for row in rows.instances
        ]

    async def migrations(self, since_unix_s: float) -> list[MigrationRecord] | None:
        """Attempts that ended after `since_unix_s` of our clock, oldest first, times relative to it; None if it did
        not say."""
        answer = await self._ask(f"/migrations?limit={MOST_MIGRATIONS}", MigrationsAnswer)
        if answer is None:
            return None
        since_s = since_unix_s + self._ahead_s
        recent = [row for row in answer.migrations if row.at_s >= since_s]
        recent.sort(key=lambda row: row.at_s)
        return [msgspec.structs.replace(row, at_s=row.at_s - since_s) for row in recent]

    async def _ask(self, path: str, kind: type[AnswerT]) -> AnswerT | None:
        try:
            return msgspec.json.decode(await self._get(PREFIX + path), type=kind)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return None

    async def _get(self, path: str) -> bytes:
        timeout = aiohttp.ClientTimeout(total=QUERY_TIMEOUT_S)
        asked_s = time()
        async with self._session.get(self._url + path, headers=self._headers, timeout=timeout) as response:
            self._ahead_s = clock_ahead_s(response.headers.get("Date", ""), asked_s, time())
            response.raise_for_status()
            return await response.read()


def clock_ahead_s(date: str, asked_unix_s: float, answered_unix_s: float) -> float:
    """How far the clock of a server that says `date` is ahead of ours, which it does at some time from when it is asked
    to when it answers; 0 where its whole seconds do not show it."""
    try:
        said_s = parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):  # it says none
        return 0.0
    if asked_unix_s - SAME_CLOCK_S <= said_s <= answered_unix_s + SAME_CLOCK_S:
        return 0.0
    return said_s - asked_unix_s


async def sample_instances(server: Server, now_s: Callable[[], float], rows: list[InstanceRecord]) -> None:
    """Adds the load of all instances to `rows` once per second until it is cancelled.

    Returns at once if the server does not know of instances. One that is no longer named gets a last row: stopped.
    """
    known: dict[str, InstanceRecord] = {}
    first = True
    while True:
        at_s = now_s()
        current = await server.instances(at_s)
        if current is None and first:
            return
        first = False
        if current is not None:
            named = {row.instance for row in current}
            gone = [row for name, row in known.items() if name not in named and exists(row.state)]
            current += [msgspec.structs.replace(row, at_s=at_s, state=InstanceState.STOPPED) for row in gone]
            known |= {row.instance: row for row in current}
            rows += current
        # On whole intervals; 0.01 because a timer may fire a hair early, and none is to be sampled twice.
        due_s = (math.floor(now_s() / SAMPLE_INTERVAL_S + 0.01) + 1) * SAMPLE_INTERVAL_S
        await asyncio.sleep(due_s - now_s())
