"""The admin API on an event loop, for moves and looks in the middle of streams; elsewhere, `AdminClient` does."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import aiohttp
import msgspec

from llumnix.api import bodies
from llumnix.api.routes import PREFIX
from llumnix.control.scheduler_events import DrainReport
from llumnix.report.records import MigrationRecord

WAIT_S = 60.0
_POLL_S = 0.02

Row = dict[str, Any]
Answer = TypeVar("Answer")


class Admin:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def _get(self, path: str, kind: type[Answer]) -> Answer:
        async with self._session.get(PREFIX + path) as response:
            return msgspec.json.decode(await response.read(), type=kind)

    async def status(self) -> bodies.InstancesAnswer:
        return await self._get("/instances", bodies.InstancesAnswer)

    async def requests(self) -> list[bodies.ClientRequest]:
        return (await self._get("/requests", bodies.RequestsAnswer)).requests

    async def moves(self, limit: int) -> list[MigrationRecord]:
        """The last attempts, newest first."""
        return (await self._get(f"/migrations?limit={limit}", bodies.MigrationsAnswer)).migrations

    async def drains(self) -> list[DrainReport]:
        return (await self._get("/drains", bodies.DrainsAnswer)).drains

    async def running(self) -> list[str]:
        return [row.id for row in (await self.status()).instances if row.state == "running"]

    async def where(self, request: str) -> str | None:
        """The instance that has the request; None if nobody has."""
        return next((row.instance for row in await self.requests() if row.id == request), None)

    async def until_state(self, request: str, state: str) -> None:
        async with asyncio.timeout(WAIT_S):
            while True:
                if any(row.id == request and row.state == state for row in await self.requests()):
                    return
                await asyncio.sleep(_POLL_S)

    async def migrate(self, request: str, target: str) -> tuple[int, Row]:
        """HTTP status and answer, whichever it is, when the move is over."""
        body = {"request_id": request, "target": target}
        async with self._session.post(f"{PREFIX}/migrations", json=body) as response:
            return response.status, await response.json()

    async def start(self, count: int) -> int:
        """HTTP status."""
        async with self._session.post(f"{PREFIX}/instances", json={"count": count}) as response:
            return response.status

    async def drain(self, instance: str, query: str = "") -> int:
        """HTTP status."""
        async with self._session.post(f"{PREFIX}/instances/{instance}/drain{query}") as response:
            return response.status

    async def give_role(self, instance: str, role: str) -> int:
        """HTTP status."""
        async with self._session.post(f"{PREFIX}/instances/{instance}/role", json={"role": role}) as response:
            return response.status
