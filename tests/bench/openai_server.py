"""A small server that speaks OpenAI streaming over plain sockets, well or in one of many bad ways.

It shares no code with the client that it tests. Run as a program it serves on a port until it is killed:

    python tests/bench/openai_server.py PORT STEP_S
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass
class OpenAIServer:
    """What it says and what it heard."""

    step_s: float = 0.001
    others: int = 12
    others_came: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when so many requests were heard."""
    faults: dict[str, str] = field(default_factory=dict)
    """Kind of failure by the end of the X-Request-Id."""
    faulty_tries: int = 1_000_000
    """From then on the same request is answered well."""
    retry_after: str = ""
    routes: dict[str, Any] = field(default_factory=dict)
    """Answers of more GET routes; bytes go out as they are."""
    date: str = ""
    """What it says of the time with them."""
    models: Any = field(default_factory=lambda: {"data": [{"id": "tiny", "max_model_len": 4096}, {"id": "other"}]})
    continuous_usage: bool = True
    tokens_per_chunk: int = 1
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    """By the end of the X-Request-Id."""
    headers: list[dict[str, str]] = field(default_factory=list)
    gets: list[str] = field(default_factory=list)
    url: str = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")
                method, path, _ = first.split(" ")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
                self.headers.append(headers)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if method == "GET":
                    self.gets.append(path)
                    self._get(writer, path.partition("?")[0])
                elif not await self._complete(writer, headers, json.loads(body)):
                    break
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _get(self, writer: asyncio.StreamWriter, path: str) -> None:
        answers = {"/v1/models": self.models, **self.routes}
        answer = answers.get(path)
        if callable(answer):
            answer = answer()
        status = "404 Not Found" if answer is None else "200 OK"
        if isinstance(answer, int):
            status = f"{answer} Refused"
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        date = f"date: {self.date}\r\n" if self.date else ""
        writer.write(f"HTTP/1.1 {status}\r\n{date}content-length: {len(data)}\r\n\r\n".encode() + data)

    async def _complete(self, writer: asyncio.StreamWriter, headers: dict[str, str], body: dict[str, Any]) -> bool:
        """Answers one completion; False if the connection is to be closed."""
        sent_id = headers["x-request-id"]
        name = sent_id.rpartition("-")[2]
        self.tries[name] = self.tries.get(name, 0) + 1
        if len(self.tries) >= self.others:
            self.others_came.set()
        fault = self.faults.get(name, "") if self.tries[name] <= self.faulty_tries else ""
        self.bodies[name] = body
        if fault in ("refuse", "misunderstand"):
            status = "503 Busy" if fault == "refuse" else "400 Bad"
            later = f"retry-after: {self.retry_after}\r\n" if self.retry_after else ""
            writer.write(f'HTTP/1.1 {status}\r\n{later}content-length: 15\r\n\r\n{{"why": "busy"}}'.encode())
            return True
        if fault == "close at once":
            return False
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        total, sent = body["max_tokens"], 0
        if fault == "one token less":
            total -= 1
        while sent < total:
            await asyncio.sleep(0.4 if fault == "pause" and sent == 2 else self.step_s)
            if fault == "wait for others":
                await self.others_came.wait()
            count = min(self.tokens_per_chunk, total - sent)
            sent += count
            if sent > 2 and fault in (
                "close in the middle",
                "end in the middle",
                "hang",
                "error",
                "garbage",
                "no letters",
                "abort",
            ):
                return await self._fail(writer, fault)
            finish = "length" if sent == total else None
            event: dict[str, Any] = {
                "id": f"cmpl-{sent_id}",
                "choices": [{"index": 0, "text": "a" * count, "finish_reason": finish}],
            }
            if self.continuous_usage:
                event["usage"] = {"completion_tokens": sent, "prompt_tokens": len(body["prompt"])}
            line = f"data: {json.dumps(event)}\n\n"
            if fault == "in pieces":
                for piece in line:
                    self._chunk(writer, piece)
                    await writer.drain()
            else:
                self._chunk(writer, line)
            await writer.drain()
        usage = {"id": f"cmpl-{sent_id}", "choices": [], "usage": {"completion_tokens": sent}}
        self._chunk(writer, f": comment\r\n\r\ndata: {json.dumps(usage)}\r\n\r\ndata: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        return True

    async def _fail(self, writer: asyncio.StreamWriter, fault: str) -> bool:
        if fault == "hang":
            await asyncio.sleep(60)
        elif fault == "error":
            self._chunk(writer, 'data: {"error": {"message": "engine died", "code": 500}}\n\n')
        elif fault == "garbage":
            self._chunk(writer, "data: {]\n\n")
        elif fault == "no letters":
            self._chunk(writer, b'data: {"choices": [{"text": "\xff"}]}\n\n')
        elif fault == "abort":
            self._chunk(writer, 'data: {"choices": [{"text": "", "finish_reason": "abort"}]}\n\n')
        if fault == "close in the middle":
            return False
        writer.write(b"0\r\n\r\n")
        return True

    def _chunk(self, writer: asyncio.StreamWriter, text: str | bytes) -> None:
        data = text if isinstance(text, bytes) else text.encode()
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


@asynccontextmanager
async def serving(server: OpenAIServer, port: int = 0) -> AsyncIterator[OpenAIServer]:
    """`server` on a free port of this machine until the block ends; `server.url` is where."""
    listener = await asyncio.start_server(server.handle, "127.0.0.1", port, limit=1 << 24, backlog=4096)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()


async def _main(port: int, step_s: float) -> None:
    async with serving(OpenAIServer(step_s=step_s), port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), float(sys.argv[2])))
