"""Streamed completions as a client sees them: when each piece came. Light, since the client shares the machine.

Exact numbers of tokens are asked for (`ignore_eos`, `max_tokens`), so tokens need not be counted as they come; a
piece is what one engine step made, or several steps if the server was late.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import aiohttp

_PIECE = b'"text":'
_END = b"data: [DONE]"
_EDGE = max(len(_PIECE), len(_END)) - 1


class StreamFailed(Exception):
    """The server answered with something else than a whole stream."""


@dataclass(slots=True, eq=False)
class Stream:
    """One streamed completion: `run` sends it and returns when it has ended."""

    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    sent_s: float = 0.0
    times_s: list[float] = field(default_factory=list)
    """When each piece came, on the loop's clock."""
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, session: aiohttp.ClientSession, url: str) -> None:
        """Raises StreamFailed, or aiohttp.ClientError."""
        clock = asyncio.get_running_loop().time
        headers = {"Content-Type": "application/json", **self.headers}
        self.sent_s = clock()
        async with session.post(f"{url}/v1/completions", data=self.body, headers=headers) as answer:
            if answer.status != 200:
                raise StreamFailed(f"HTTP {answer.status}: {(await answer.text())[:300]}")
            rest, ended = b"", False
            async for data in answer.content.iter_any():
                now = clock()
                data = rest + data
                pieces = data.count(_PIECE)
                ended = ended or _END in data
                if pieces:
                    self.times_s += [now] * pieces
                    self._news.set()
                elif b'"error":' in data:
                    raise StreamFailed(data.decode(errors="replace")[:300])
                # A mark may be cut in two; one that is whole must not be counted twice.
                rest = data[-_EDGE:] if not data.endswith(b"\n") else b""
                if _PIECE in rest:
                    rest = rest[rest.rindex(_PIECE) + len(_PIECE) :]
            if not ended or not self.times_s:
                raise StreamFailed("the stream ended early")

    async def pieces(self, count: int, timeout_s: float = 60.0) -> None:
        """Waits until `count` pieces came in all."""
        async with asyncio.timeout(timeout_s):
            while len(self.times_s) < count:
                self._news.clear()
                await self._news.wait()

    @property
    def ttft_s(self) -> float:
        return self.times_s[0] - self.sent_s

    def gaps_s(self, after_s: float, until_s: float) -> list[float]:
        """Gaps between pieces of which the later came in (after_s, until_s]."""
        times = self.times_s
        return [b - a for a, b in pairwise(times) if after_s < b <= until_s]


def completion_body(model: str, prompt: Sequence[int], output_tokens: int) -> bytes:
    """A greedy completion of exactly `output_tokens` tokens, streamed."""
    fields = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }
    return json.dumps(fields).encode()


async def served_model(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(f"{url}/v1/models") as answer:
        answer.raise_for_status()
        name: str = (await answer.json())["data"][0]["id"]
        return name


def open_session() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30.0)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 20)
