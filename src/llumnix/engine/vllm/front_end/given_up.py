"""Requests that are given up: their clients get an error that says why, whatever route they came by."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from vllm.exceptions import GenerationError, GracefulHTTPError
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.output_processor import OutputProcessor


class ToldError(GracefulHTTPError, GenerationError):
    """To vLLM both of what it knows: an answer with a status of its own, and an end of a stream that is no news for the
    log."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, HTTPStatus(status))
        self.status_code = self.http_status


class GivenUp(ToldError):
    def __init__(self, request_id: str, why: str) -> None:
        """`request_id`: as vLLM's front end knows it."""
        super().__init__(f"The request was given up: {why}.", HTTPStatus.INTERNAL_SERVER_ERROR)
        self.request_id = request_id


def why_given_up(request: EngineCoreRequest, output: EngineCoreOutput) -> str:
    """Why the last output of an engine is no end that a client could be told of; empty: it is one.

    Some of vLLM's routes answer with the text so far where an engine failed. An end of a pooling request without a
    result stops vLLM's whole front end, and after one a streaming input session waits for ever.
    """
    if output.mm_cache_miss_hashes:
        return ""  # vLLM answers that it may be asked again
    if output.finish_reason is FinishReason.ERROR:
        return "its engine failed at it"
    has_no_text = request.pooling_params is not None or request.resumable
    if output.finish_reason is FinishReason.ABORT and has_no_text:
        return "its engine aborted it"
    return ""


async def end_request(end: GivenUp, requests: OutputProcessor, client: EngineCoreClient) -> None:
    """`generate` and `encode` raise the error. The siblings of a sequence (`n` > 1) end with it."""
    await asyncio.sleep(0)  # they take what was said before, which the error would replace
    state = requests.request_states.get(end.request_id)
    if state is None or state.queue is None:
        return  # its client has just gone
    queue, whole = state.queue, end.request_id if state.parent_req is None else state.parent_req.request_id
    ended = requests.abort_requests([whole], internal=True)
    queue.close()  # no further input
    queue.put(end)
    await client.abort_requests_async(ended)
