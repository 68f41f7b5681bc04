"""A quick client of token streams: what each stream said, and moves made while it runs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
STREAM_TIMEOUT_S = 110.0
WAIT_S = 60.0


def open_session(url: str, api_key: str | None = None) -> aiohttp.ClientSession:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return aiohttp.ClientSession(
        url,
        headers=headers,
        # No connection is used twice: under load, the server may close one just when it is picked up again.
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=STREAM_TIMEOUT_S),
    )


@dataclass(slots=True)
class Sequence:
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: Any = None


@dataclass(slots=True)
class Output:
    """What came of one streaming request."""

    id: str = ""
    sequences: dict[int, Sequence] = field(default_factory=dict)
    usage_tokens: int | None = None
    error: str = ""
    times: list[float] = field(default_factory=list)
    """When each piece came."""

    @property
    def tokens(self) -> int:
        return sum(len(sequence.tokens) for sequence in self.sequences.values())

    @property
    def complete(self) -> bool:
        return not self.error and bool(self.sequences) and all(s.finish_reason for s in self.sequences.values())

    def read(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.error = event["error"]["message"]
            return
        self.id = event["id"]
        if event.get("usage"):
            self.usage_tokens = event["usage"]["completion_tokens"]
        for choice in event["choices"]:
            self._read_choice(choice)
        self.times.append(time.monotonic())

    def _read_choice(self, choice: dict[str, Any]) -> None:
        sequence = self.sequences.setdefault(choice["index"], Sequence())
        sequence.tokens += choice.get("token_ids") or []
        delta = choice.get("delta")
        sequence.text += choice.get("text", "") if delta is None else (delta.get("content") or "")
        logprobs = choice.get("logprobs") or {}
        sequence.logprobs += logprobs.get("token_logprobs") or []
        sequence.logprobs += [entry["logprob"] for entry in logprobs.get("content") or []]
        sequence.finish_reason = choice.get("finish_reason") or sequence.finish_reason
        sequence.stop_reason = choice.get("stop_reason") or sequence.stop_reason


def streaming(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": "tiny",
        **body,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }


async def stream(
    session: aiohttp.ClientSession,
    path: str,
    body: dict[str, Any],
    *,
    name: str | None = None,
    engine: int | None = None,
    on_piece: Callable[[Output], None] = lambda output: None,
) -> Output:
    """Streams one request to its end. `name` becomes part of its id, so that it is known before the first token;
    `engine` is the place to send it to, for those who do not want it dispatched."""
    output = Output()
    headers = {} if name is None else {"X-Request-Id": name}
    if engine is not None:
        headers["X-data-parallel-rank"] = str(engine)
    async with session.post(path, json=streaming(body), headers=headers) as response:
        if response.status != 200:
            output.error = f"{response.status}: {(await response.text())[:500]}"
            return output
        async for event in _events(response):
            output.read(event)
            on_piece(output)
    return output


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in response.content:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            yield json.loads(line[6:])


def id_of(path: str, name: str) -> str:
    """The id that a client is given of a request with this name."""
    return f"{'chatcmpl' if path == CHAT else 'cmpl'}-{name}"


class Streaming:
    """A stream that runs beside the test; awaiting it gives its output."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        body: dict[str, Any],
        *,
        name: str,
        path: str = COMPLETIONS,
        engine: int | None = None,
    ) -> None:
        self.id = id_of(path, name)
        self.output = Output()
        self._piece = asyncio.Event()
        self.task = asyncio.create_task(stream(session, path, body, name=name, engine=engine, on_piece=self._keep))

    def __await__(self) -> Generator[Any, None, Output]:
        return self.task.__await__()

    def _keep(self, output: Output) -> None:
        self.output = output
        self._piece.set()

    async def reaches(self, tokens: int) -> None:
        """Fails if the stream ends before, or takes too long."""
        async with asyncio.timeout(WAIT_S):
            while self.output.tokens < tokens:
                assert not self.task.done(), f"ended with {self.output.tokens} tokens: {self.output.error}"
                self._piece.clear()
                await asyncio.wait(
                    (self.task, asyncio.ensure_future(self._piece.wait())), return_when="FIRST_COMPLETED"
                )


class Admin:
    """The admin API, for moves in the middle of streams."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def get(self, what: str) -> list[dict[str, Any]]:
        async with self._session.get(f"/llumnix/v1/{what}") as response:
            rows: list[dict[str, Any]] = (await response.json())[what]
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
                await asyncio.sleep(0.02)

    async def migrate(self, request: str, target: str) -> tuple[int, dict[str, Any]]:
        body = {"request_id": request, "target": target}
        async with self._session.post("/llumnix/v1/migrations", json=body) as response:
            return response.status, await response.json()

    async def start(self, count: int) -> int:
        async with self._session.post("/llumnix/v1/instances", json={"count": count}) as response:
            return response.status

    async def drain(self, instance: str) -> int:
        async with self._session.post(f"/llumnix/v1/instances/{instance}/drain") as response:
            return response.status
