"""The admin API on an event loop, for moves and looks in the middle of streams; elsewhere, `AdminClient` does."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

WAIT_S = 60.0
_POLL_S = 0.02

Row = dict[str, Any]


class Admin:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def ask(self, path: str) -> Row:
        """The whole answer to GET `/llumnix/v1/PATH`."""
        async with self._session.get(f"/llumnix/v1/{path}") as response:
            answer: Row = await response.json()
            return answer

    async def get(self, what: str, query: str = "") -> list[Row]:
        """The rows of a list."""
        rows: list[Row] = (await self.ask(f"{what}{query}"))[what]
        return rows

    async def running(self) -> list[str]:
        return [row["id"] for row in await self.get("instances") if row["state"] == "running"]

    async def where(self, request: str) -> str | None:
        """The instance that has the request; None if nobody has."""
        return next((row["instance"] for row in await self.get("requests") if row["id"] == request), None)

    async def until_state(self, request: str, state: str) -> None:
        async with asyncio.timeout(WAIT_S):
            while True:
                if any(row["id"] == request and row["state"] == state for row in await self.get("requests")):
                    return
                await asyncio.sleep(_POLL_S)

    async def migrate(self, request: str, target: str) -> tuple[int, Row]:
        """HTTP status and answer, when the move is over."""
        body = {"request_id": request, "target": target}
        async with self._session.post("/llumnix/v1/migrations", json=body) as response:
            return response.status, await response.json()

    async def start(self, count: int) -> int:
        """HTTP status."""
        async with self._session.post("/llumnix/v1/instances", json={"count": count}) as response:
            return response.status

    async def drain(self, instance: str, query: str = "") -> int:
        """HTTP status."""
        async with self._session.post(f"/llumnix/v1/instances/{instance}/drain{query}") as response:
            return response.status
