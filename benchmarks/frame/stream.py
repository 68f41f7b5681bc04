"""A quick client of token streams: what each stream said, and when. Light: it shares the machine with the server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import aiohttp
import msgspec

from llumnix.stream_lines import LineSplitter

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
STREAM_TIMEOUT_S = 110.0
WAIT_S = 60.0


def open_session(
    url: str, api_key: str | None = None, *, timeout_s: float | None = STREAM_TIMEOUT_S, keep_alive: bool = False
) -> aiohttp.ClientSession:
    """`timeout_s`: of a whole stream. With `keep_alive` connections are used again, as real clients do."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    # Under load, the server may close one just when it is picked up again, after 5 s without use.
    reuse: dict[str, Any] = {"keepalive_timeout": 3.0} if keep_alive else {"force_close": True}
    return aiohttp.ClientSession(
        url,
        headers=headers,
        connector=aiohttp.TCPConnector(limit=0, **reuse),
        timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=30.0),
        read_bufsize=1 << 20,
    )


async def served_model(session: aiohttp.ClientSession) -> str:
    async with session.get("/v1/models") as answer:
        answer.raise_for_status()
        name: str = (await answer.json())["data"][0]["id"]
        return name


@dataclass(slots=True)
class Said:
    """By one sequence of a stream."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: Any = None


@dataclass(slots=True)
class Output:
    """What came of one streaming request. Instants are on the monotonic clock, which is the loop's, too."""

    id: str = ""
    sequences: dict[int, Said] = field(default_factory=dict)
    usage_tokens: int | None = None
    cached_tokens: int = 0
    """Of its prompt, if the server tells (`--enable-prompt-tokens-details`)."""
    error: str = ""
    sent_s: float = 0.0
    times_s: list[float] = field(default_factory=list)
    """When each piece came: what one engine step made, or several steps if the server was late."""

    @property
    def tokens(self) -> int:
        return sum(len(sequence.tokens) for sequence in self.sequences.values())

    @property
    def complete(self) -> bool:
        return not self.error and bool(self.sequences) and all(s.finish_reason for s in self.sequences.values())

    @property
    def failure(self) -> str:
        """Empty if it is complete."""
        return "" if self.complete else self.error or "the stream ended early"

    @property
    def ttft_s(self) -> float:
        return self.times_s[0] - self.sent_s

    def gaps_s(self, after_s: float, until_s: float) -> list[float]:
        """Gaps between pieces of which the later came in (after_s, until_s]."""
        return [b - a for a, b in pairwise(self.times_s) if after_s < b <= until_s]

    def read(self, event: dict[str, Any], now_s: float) -> None:
        if "error" in event:
            self.error = event["error"]["message"]
            return
        self.id = event["id"]
        if usage := event.get("usage"):
            self.usage_tokens = usage["completion_tokens"]
            self.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        for choice in event["choices"]:
            self._read_choice(choice)
            self.times_s.append(now_s)

    def _read_choice(self, choice: dict[str, Any]) -> None:
        sequence = self.sequences.setdefault(choice["index"], Said())
        sequence.tokens += choice.get("token_ids") or []
        delta = choice.get("delta")
        sequence.text += choice.get("text", "") if delta is None else (delta.get("content") or "")
        logprobs = choice.get("logprobs") or {}
        sequence.logprobs += logprobs.get("token_logprobs") or []
        sequence.logprobs += [entry["logprob"] for entry in logprobs.get("content") or []]
        sequence.finish_reason = choice.get("finish_reason") or sequence.finish_reason
        sequence.stop_reason = choice.get("stop_reason") or sequence.stop_reason


def streaming(body: dict[str, Any]) -> dict[str, Any]:
    """With all that shows whether two streams say the same."""
    return {
        "model": "tiny",
        **body,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }


def exactly(model: str, prompt: Sequence[int], output_tokens: int) -> bytes:
    """A body: a greedy completion of exactly so many tokens, streamed, and nothing that costs more than that."""
    return msgspec.json.encode(
        {
            "model": model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
    )


async def stream(
    session: aiohttp.ClientSession,
    path: str,
    body: dict[str, Any] | bytes,
    *,
    name: str | None = None,
    engine: int | None = None,
    on_piece: Callable[[Output], None] = lambda output: None,
    output: Output | None = None,
) -> Output:
    """Streams one request to its end. `name` becomes part of its id, so that it is known before the first token;
    `engine` is the place to send it to, for those who do not want it dispatched. Fields are completed by `streaming`,
    bytes go out as they are. Raises aiohttp.ClientError and TimeoutError; what the server says is in `error`."""
    output = output or Output()
    headers = {"Content-Type": "application/json"} | ({} if name is None else {"X-Request-Id": name})
    if engine is not None:
        headers["X-data-parallel-rank"] = str(engine)
    data = body if isinstance(body, bytes) else msgspec.json.encode(streaming(body))
    output.sent_s = time.monotonic()
    try:
        async with session.post(path, data=data, headers=headers) as response:
            if response.status != 200:
                output.error = f"{response.status}: {(await response.text())[:500]}"
                return output
            await _read(response, output, on_piece)
    except TimeoutError as error:
        if isinstance(error, aiohttp.ClientError):
            raise
        waited_s = time.monotonic() - output.sent_s
        raise TimeoutError(f"{name} has said {output.tokens} tokens in {waited_s:.0f} s, and not the last") from error
    return output


async def _read(response: aiohttp.ClientResponse, output: Output, on_piece: Callable[[Output], None]) -> None:
    splitter = LineSplitter()
    async for read in response.content.iter_any():
        now_s = time.monotonic()
        for line in splitter.feed(read):
            if line.startswith(b"data: ") and line != b"data: [DONE]":
                output.read(msgspec.json.decode(line[6:]), now_s)
                on_piece(output)


def id_of(path: str, name: str) -> str:
    """The id that a client is given of a request with this name."""
    return f"{'chatcmpl' if path == CHAT else 'cmpl'}-{name}"


class Streaming:
    """A stream that runs beside the caller; awaiting it gives its output."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        body: dict[str, Any] | bytes,
        *,
        name: str,
        path: str = COMPLETIONS,
        engine: int | None = None,
    ) -> None:
        self.id = id_of(path, name)
        self.output = Output()
        self._piece = asyncio.Event()
        self.task = asyncio.create_task(
            stream(session, path, body, name=name, engine=engine, on_piece=self._on_piece, output=self.output)
        )

    def __await__(self) -> Generator[Any, None, Output]:
        return self.task.__await__()

    def _on_piece(self, _output: Output) -> None:
        self._piece.set()

    async def reaches(self, tokens: int) -> None:
        """Fails if the stream ends before, or takes too long."""
        await self._until(lambda: self.output.tokens >= tokens)

    async def pieces(self, count: int) -> None:
        """Until so many came in all. Fails as `reaches` does."""
        await self._until(lambda: len(self.output.times_s) >= count)

    async def more_pieces(self, count: int) -> None:
        await self.pieces(len(self.output.times_s) + count)

    async def cancel(self) -> None:
        """The client leaves; returns when it has."""
        self.task.cancel()
        await asyncio.wait((self.task,))

    async def _until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not reached():
                said = f"{len(self.output.times_s)} pieces, {self.output.tokens} tokens"
                assert not self.task.done(), f"ended with {said}: {self.output.error}"
                self._piece.clear()
                waiting = asyncio.ensure_future(self._piece.wait())
                await asyncio.wait((self.task, waiting), return_when="FIRST_COMPLETED")
                waiting.cancel()


async def all_go_on(streams: Sequence[Streaming], tokens: int) -> None:
    """Until each has said so many more than now, or has failed, which it says itself."""
    goals = [stream.output.tokens + tokens for stream in streams]
    for stream, goal in zip(streams, goals, strict=True):
        with contextlib.suppress(AssertionError):
            await stream.reaches(goal)
