"""Errors of generations in streams of `/v1/messages` and `/v1/responses`, where vLLM takes them for something that it
cannot read: on the one it tells that, the other it breaks off."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, NoReturn

from openai.types.responses import ResponseErrorEvent
from vllm.exceptions import GenerationError

_ERROR = 'data: {"error"'


def tell_errors(state: Any) -> None:
    """Makes both end with an error that says what it is.

    Wraps what makes their events on the serving objects of this app: `message_stream_converter`
    (entrypoints/anthropic/serving.py) and `responses_stream_generator` (entrypoints/openai/responses/serving.py).
    """
    messages = getattr(state, "anthropic_serving_messages", None)
    if messages is not None:
        convert = messages.message_stream_converter
        messages.message_stream_converter = lambda chunks: convert(_raising(chunks))
    responses = getattr(state, "openai_serving_responses", None)
    if responses is not None:
        events = responses.responses_stream_generator
        responses._convert_generation_error_to_streaming_response = _raise
        responses.responses_stream_generator = lambda *args, **kwargs: _ending(events(*args, **kwargs))


async def _raising(chunks: AsyncIterator[str]) -> AsyncIterator[str]:
    """`chunks`: of a chat completion. Raises the error that they end with, if they do."""
    async for chunk in chunks:
        if chunk.startswith(_ERROR):
            raise GenerationError(json.loads(chunk.removeprefix("data: "))["error"]["message"])
        yield chunk


def _raise(error: GenerationError) -> NoReturn:
    raise error


async def _ending(events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    said = 0
    try:
        async for event in events:
            said += 1
            yield event
    except GenerationError as error:
        code = str(int(error.status_code))
        yield ResponseErrorEvent(type="error", sequence_number=said, code=code, message=str(error))
