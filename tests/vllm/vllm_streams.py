"""A quick client of token streams: what each stream said, and moves made while it runs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
STREAM_TIMEOUT_S = 110.0


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
    on_piece: Callable[[Output], None] = lambda output: None,
) -> Output:
    """Streams one request to its end. `name` becomes part of its id, so that it is known before the first token."""
    output = Output()
    headers = {} if name is None else {"X-Request-Id": name}
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

    async def migrate(self, request: str, target: str) -> tuple[int, dict[str, Any]]:
        body = {"request_id": request, "target": target}
        async with self._session.post("/llumnix/v1/migrations", json=body) as response:
            return response.status, await response.json()


async def until(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> None:
    """Waits for a plain condition on this event loop."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain for: {what}"
        await asyncio.sleep(0.005)
