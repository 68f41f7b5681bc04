"""Errors of generations in streams of `/v1/messages` and `/v1/responses`, where vLLM takes them for something that it
cannot read: on the one it tells that, the other it breaks off. Whoever asks for a response in the background would wait
for ever."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, NoReturn

from openai.types.responses import ResponseErrorEvent
from vllm.exceptions import GenerationError

_ERROR = 'data: {"error"'


def tell_errors(state: Any) -> None:
    """Makes all of them end with an error that says what it is.

    Wraps what makes their events on the serving objects of this app: `message_stream_converter`
    (entrypoints/anthropic/serving.py) and `responses_stream_generator` (entrypoints/openai/responses/serving.py); and
    there, what is done in the background and read from there.
    """
    messages = getattr(state, "anthropic_serving_messages", None)
    if messages is not None:
        convert = messages.message_stream_converter
        messages.message_stream_converter = lambda chunks: convert(_raising(chunks))
    responses = getattr(state, "openai_serving_responses", None)
    if responses is not None:
        _Responses(responses).wrap()


async def _raising(chunks: AsyncIterator[str]) -> AsyncIterator[str]:
    """`chunks`: of a chat completion. Raises the error that they end with, if they do."""
    async for chunk in chunks:
        if chunk.startswith(_ERROR):
            raise GenerationError(json.loads(chunk.removeprefix("data: "))["error"]["message"])
        yield chunk


class _Responses:
    """vLLM's methods, with an end for errors."""

    def __init__(self, serving: Any) -> None:
        self._serving = serving
        self._events = serving.responses_stream_generator
        self._read = serving.responses_background_stream_generator
        self._run = serving._run_background_request

    def wrap(self) -> None:
        self._serving._convert_generation_error_to_streaming_response = _raise
        self._serving.responses_stream_generator = self.events
        self._serving.responses_background_stream_generator = self.read
        self._serving._run_background_request = self.run

    async def events(self, request: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Of a stream, or for those who read it from the background."""
        said = 0
        try:
            async for event in self._events(request, *args, **kwargs):
                said += 1
                yield event
        except GenerationError as error:
            await self._failed(request, error)
            code = str(int(error.status_code))
            yield ResponseErrorEvent(type="error", sequence_number=said, code=code, message=str(error))

    async def read(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """From the background. vLLM's waits for more when an error was the last event."""
        async with aclosing(self._read(*args, **kwargs)) as events:
            async for event in events:
                yield event
                if isinstance(event, ResponseErrorEvent):
                    return

    async def run(self, request: Any, *args: Any, **kwargs: Any) -> None:
        """In the background, without a stream."""
        try:
            await self._run(request, *args, **kwargs)
        except GenerationError as error:
            await self._failed(request, error)

    async def _failed(self, request: Any, error: GenerationError) -> None:
        """To be said of a response that is kept for later; others are kept when they are complete."""
        async with self._serving.response_store_lock:
            kept = self._serving.response_store.get(request.request_id)
            if kept is not None and kept.status not in ("completed", "cancelled"):
                kept.status = "failed"
                kept.error = {"code": "server_error", "message": str(error)}


def _raise(error: GenerationError) -> NoReturn:
    raise error
