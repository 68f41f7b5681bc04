"""One streamed completion, and when its tokens came.

Speaks the OpenAI `/v1/completions` protocol. Tokens are counted exactly where the server reports
`usage.completion_tokens` with each chunk, as vLLM does with `continuous_usage_stats`; a chunk may carry several
tokens, which then came at one time. Elsewhere each chunk of a stream that goes on counts as one token, also without
text (half of a character), until the usage at the end.
"""

from __future__ import annotations

import asyncio
import math
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec
import numpy as np

from llumnix.policy.classes import CLASS_HEADER
from llumnix.stream_lines import LineSplitter
from llumnix.types import NORMAL
from llumnix.workload.workload import WorkloadRequest

MAX_DETAIL_CHARS = 300
_PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS)
"""Refusals that OpenAI's own client asks again after, besides all from 500 on."""

MOST_OBEYED_S = 60.0
"""OpenAI's own client comes back by its own measure if the server says more, or 0."""

_CHARACTERS = string.ascii_letters + string.digits


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Choice(msgspec.Struct):
    text: str = ""
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    id: str = ""
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class BadAnswer(Exception):
    """The server answered, but not with a whole completion; `str(error)` is the kind of failure.

    `detail` is what the server said, of the first so many characters; `again_s`, after how long to come back, if it
    said so and a client obeys that;
    `lasting`: asking again would bring the same.
    """

    def __init__(self, kind: str, detail: str = "", *, again_s: float | None = None, lasting: bool = False) -> None:
        super().__init__(kind)
        self.detail = detail[:MAX_DETAIL_CHARS]
        self.again_s = again_s
        self.lasting = lasting


@dataclass(slots=True)
class TokenTimes:
    """When the tokens of one request came, in seconds after `zero_s` on the loop's clock."""

    zero_s: float = 0.0
    server_id: str = ""
    tokens: int = 0
    """The most that any of its streams had."""
    first_s: float | None = None
    last_s: float = 0.0
    largest_gap_s: float = 0.0
    ended: bool = False
    _of_stream: int = 0

    def begin_again(self) -> None:
        """Another stream, from the first token on: what it repeats is no news, and until then the client waits."""
        self._of_stream = 0

    def on_line(self, line: bytes, now_s: float) -> None:
        """Takes one line of the stream, which came at `now_s` of the loop's clock.

        Raises BadAnswer if it tells of a failure, or is no event.
        """
        if not line.startswith(b"data:"):
            if line and not line.startswith((b":", b"event:", b"id:", b"retry:")):
                raise BadAnswer("malformed answer")
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self.ended = True
            return
        try:
            chunk = _decode_chunk(data)
        except ValueError as error:
            raise BadAnswer("malformed answer") from error
        if chunk.error is not None:
            raise BadAnswer("error in the stream", str(chunk.error))
        self._on_chunk(chunk, now_s - self.zero_s)

    def _on_chunk(self, chunk: _Chunk, at_s: float) -> None:
        self.server_id = self.server_id or chunk.id
        for choice in chunk.choices:
            if choice.finish_reason not in (None, "length", "stop"):
                raise BadAnswer(f"finished with {choice.finish_reason}")
        if chunk.usage is not None:
            total = chunk.usage.completion_tokens
        else:
            total = self._of_stream + sum(bool(choice.text) or choice.finish_reason is None for choice in chunk.choices)
        self._of_stream = total
        if not chunk.choices:  # the usage at the end: more than the chunks showed came with the last of them
            self.tokens = total
        elif total > self.tokens:
            self.tokens = total
            if self.first_s is None:
                self.first_s = self.last_s = at_s
            self.largest_gap_s = max(self.largest_gap_s, at_s - self.last_s)
            self.last_s = at_s


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of exact length as token ids, the same for the same seed: content is random below `vocab`."""

    seed: int
    vocab: int

    def text(self, request: WorkloadRequest, index: int) -> str:
        """The same as text, a character for each id: as long as that where a character is a token."""
        return "".join(_CHARACTERS[token_id % len(_CHARACTERS)] for token_id in self.token_ids(request, index))

    def token_ids(self, request: WorkloadRequest, index: int) -> list[int]:
        """Ids for the request at `index` of the workload.

        Requests whose `block_hashes` agree get the same ids there, so that prefix caching has what to find.
        """
        if not request.block_hashes:
            return self._random(index, 0, request.prompt_tokens)
        ids: list[int] = []
        for block in request.block_hashes:
            ids += self._random(block, 1, request.block_tokens)
        # A trace may list fewer blocks than its prompt has; what is beyond them is the request's own.
        ids += self._random(index, 0, max(0, request.prompt_tokens - len(ids)))
        return ids[: request.prompt_tokens]

    def _random(self, number: int, purpose: int, count: int) -> list[int]:
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, purpose, number))))
        ids: list[int] = generator.integers(0, self.vocab, count).tolist()
        return ids


@dataclass(frozen=True, slots=True)
class Target:
    """Where completions go, and how."""

    url: str
    model: str
    prompts: Prompts
    headers: dict[str, str] = field(default_factory=dict)
    text: bool = False
    """Prompts as text: not every server takes token ids."""
    tenant_header: str = ""
    """That names a request's tenant; empty: the key does, and the workload's tenants are not told."""

    def body(self, request: WorkloadRequest, index: int) -> bytes:
        """The JSON of a request: greedy, exactly `output_tokens` long, streamed."""
        prompt = self.prompts.text if self.text else self.prompts.token_ids
        fields = {
            "model": self.model,
            "prompt": prompt(request, index),
            "max_tokens": request.output_tokens,
            "min_tokens": request.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        if request.priority != NORMAL:
            fields["priority"] = request.priority
        return msgspec.json.encode(fields)

    def headers_of(self, request: WorkloadRequest) -> dict[str, str]:
        """Whose it is and which class it asks for, where the workload says so."""
        named = {CLASS_HEADER: request.cls} if request.cls else {}
        if self.tenant_header and request.tenant:
            named[self.tenant_header] = request.tenant
        return self.headers | named


async def complete(
    session: aiohttp.ClientSession, url: str, headers: Mapping[str, str], body: bytes, times: TokenTimes
) -> None:
    """Sends one completion and notes in `times` when its tokens come.

    Returns when the stream has ended well. Raises BadAnswer, aiohttp.ClientError or OSError otherwise; `times` has
    then what came until the failure.
    """
    clock = asyncio.get_running_loop().time
    async with session.post(f"{url}/v1/completions", data=body, headers=headers) as response:
        if response.status != 200:
            raise _refusal(response.status, response.headers, await response.text(errors="replace"))
        splitter = LineSplitter()
        async for data in response.content.iter_any():
            now_s = clock()
            try:
                lines = list(splitter.feed(data))
            except ValueError as error:
                raise BadAnswer(str(error)) from error
            for line in lines:
                times.on_line(line, now_s)
        if not times.ended:
            raise BadAnswer("stream ended early")


def _refusal(status: int, headers: Mapping[str, str], said: str) -> BadAnswer:
    lasting = status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _PASSING
    try:
        again_s = float(headers.get("Retry-After", ""))
    except ValueError:  # none, or a date
        again_s = math.inf
    return BadAnswer(f"HTTP {status}", said, again_s=again_s if 0 < again_s <= MOST_OBEYED_S else None, lasting=lasting)
