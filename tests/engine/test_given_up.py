"""Requests that are given up, through vLLM's own `generate` and `encode`: what their clients get, and the others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from engine_requests import engine_request
from test_engine_client import A, FrontEnd, HalfLLM
from test_engine_client import front as front
from test_engine_client import llm as llm
from vllm.engine.protocol import StreamingInput
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.generate.base.serving import GenerateBaseServing
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest, ResponsesResponse
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.exception_handling.handlers.vllm_error import vllm_error_handler
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequestType, FinishReason

from llumnix.engine.vllm.between import NOTICE
from llumnix.engine.vllm.front_end.given_up import GivenUp
from llumnix.engine.vllm.front_end.stream_errors import tell_errors

KINDS = ("text", "pooling", "session")
DELTAS = SamplingParams(temperature=0.0, output_kind=RequestOutputKind.DELTA)
POOLING = PoolingParams(task="embed")


class Client:
    """Asks for what it is named after, and keeps what it got."""

    def __init__(self, llm: HalfLLM, kind: str, name: str = "r", n: int = 1) -> None:
        self.tokens: list[int] = []
        self.end: str | None = None
        self._llm, self._kind, self._name, self._n = llm, kind, name, n
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        if self._kind == "pooling":
            request = engine_request(self._name, sampling_params=None, pooling_params=POOLING)
            async for _ in self._llm.encode(request, POOLING, self._name):  # type: ignore[arg-type]
                self.end = "pooled"
            return
        params = DELTAS.clone()
        params.n = self._n
        prompt: Any = _one_chunk() if self._kind == "session" else engine_request(self._name, sampling_params=params)
        async for output in self._llm.generate(prompt, params, self._name):
            for sequence in output.outputs:
                self.tokens += sequence.token_ids
                self.end = sequence.finish_reason


async def _one_chunk() -> AsyncIterator[StreamingInput]:
    yield StreamingInput(prompt={"prompt_token_ids": [1, 2, 3]})  # type: ignore[arg-type]
    await asyncio.Event().wait()


def _as_request(request_id: str, prompt: Any, params: Any, resumable: bool = False, **_: Any) -> Any:
    return engine_request(
        request_id, prompt_token_ids=prompt["prompt_token_ids"], sampling_params=params, resumable=resumable
    )


def _named(request: Any) -> None:
    request.external_req_id = request.request_id


@pytest.fixture
async def whole_llm(llm: Any) -> AsyncIterator[HalfLLM]:
    """As far as it takes in requests, and hands out what comes of them."""
    llm.log_stats, llm.logger_manager, llm.output_handler = False, None, None
    llm.renderer = SimpleNamespace(mm_processor_cache=None, stat_mm_cache=lambda: None)
    llm.observability_config = SimpleNamespace(otlp_traces_endpoint=None)
    llm.vllm_config.cache_config = SimpleNamespace(kv_sharing_fast_prefill=False)
    llm.model_config = SimpleNamespace(is_encoder_decoder=False)
    llm._supported_tasks = ("generate", "embed")
    llm.input_processor = SimpleNamespace(
        process_inputs=_as_request,
        assign_request_id=_named,
        apply_watermarking=lambda *_: None,
        resolve_watermarking=lambda *_: None,
    )
    yield llm
    llm.output_handler.cancel()


async def turns() -> None:
    """So many that whatever is to follow has followed."""
    for _ in range(50):
        await asyncio.sleep(0)


def said(request: str, *tokens: int, **fields: Any) -> EngineCoreOutput:
    return EngineCoreOutput(request_id=request, new_token_ids=[*tokens], **fields)


def unreadable(request: str) -> EngineCoreOutput:
    """Costs the request."""
    return said(request, kv_transfer_params={NOTICE: b""})


async def lives(llm: HalfLLM, front: FrontEnd) -> bool:
    """Whether the front end still answers others."""
    other = Client(llm, "text", "other")
    await turns()
    await front.hear(A, said("other", 4, finish_reason=FinishReason.STOP))
    await turns()
    return (other.tokens, other.end, llm.errored) == ([4], "stop", False)


@pytest.mark.parametrize("kind", KINDS)
async def test_client_of_a_request_that_is_given_up_is_told_why_and_no_other(
    whole_llm: HalfLLM, front: FrontEnd, kind: str
) -> None:
    client = Client(whole_llm, kind)
    await turns()
    tokens = [] if kind == "pooling" else [7, 8]
    await front.hear(A, *(said("r", token) for token in tokens), unreadable("r"))
    with pytest.raises(GivenUp, match=r"^The request was given up: i0 said something of it that cannot be read"):
        await asyncio.wait_for(client.task, 10)
    assert client.tokens == tokens
    assert (whole_llm.get_num_unfinished_requests(), front.client.streams.sessions) == (0, {})
    assert await lives(whole_llm, front)


async def test_siblings_of_a_sequence_that_is_given_up_are_aborted(whole_llm: HalfLLM, front: FrontEnd) -> None:
    sent: list[Any] = []
    client = Client(whole_llm, "text", n=3)
    await turns()
    front.client._send_to = lambda *letter: sent.append(letter)  # type: ignore[method-assign, assignment]
    await front.hear(A, unreadable("1_r"))
    with pytest.raises(GivenUp):
        await asyncio.wait_for(client.task, 10)
    assert sorted(sent) == [(A, EngineCoreRequestType.ABORT, [f"{n}_r"]) for n in range(3)]
    assert (front.client.streams.sessions, whole_llm.output_processor.parent_requests) == ({}, {})


async def test_whose_client_has_just_gone_is_told_nobody(whole_llm: HalfLLM, front: FrontEnd) -> None:
    client = Client(whole_llm, "text")
    await turns()
    await front.hear(A, unreadable("r"))
    client.task.cancel()
    await turns()
    assert client.task.cancelled()
    assert await lives(whole_llm, front)


async def test_chunk_of_a_session_of_whose_end_vllm_is_still_to_hear_begins_no_other_stream(
    whole_llm: HalfLLM, front: FrontEnd
) -> None:
    client = Client(whole_llm, "session")
    await turns()
    await front.hear(A, unreadable("r"))
    sent: list[Any] = []
    front.client._send_to = lambda *letter: sent.append(letter)  # type: ignore[method-assign, assignment]
    assert whole_llm.output_processor.has_request("r")
    await front.client.add_request_async(engine_request("r", resumable=True))
    assert (front.client.streams.sessions, sent) == ({}, [])
    with pytest.raises(GivenUp):
        await asyncio.wait_for(client.task, 10)
    assert front.client._given_up == set()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reason", [FinishReason.ERROR, FinishReason.ABORT])
async def test_end_that_no_client_could_be_told_of_is_an_error(
    whole_llm: HalfLLM, front: FrontEnd, kind: str, reason: FinishReason
) -> None:
    """As when an adapter cannot be loaded, or after `POST /pause?mode=abort`."""
    client = Client(whole_llm, kind)
    await turns()
    await front.hear(A, said("r", finish_reason=reason))
    if kind == "text" and reason is FinishReason.ABORT:
        await asyncio.wait_for(client.task, 10)
        assert client.end == "abort"
    else:
        with pytest.raises(GivenUp, match=r"its engine (failed at|aborted) it"):
            await asyncio.wait_for(client.task, 10)
    assert (whole_llm.get_num_unfinished_requests(), front.client.streams.sessions) == (0, {})
    assert await lives(whole_llm, front)


async def test_whoever_asks_without_a_stream_gets_a_500_that_says_why() -> None:
    answer = await vllm_error_handler(None, GivenUp("r", "i0 was lost"))  # type: ignore[arg-type]
    error = json.loads(bytes(answer.body))["error"]
    assert (answer.status_code, error["code"], error["message"]) == (500, 500, "The request was given up: i0 was lost.")


async def test_stream_that_has_begun_ends_with_an_error_that_says_why() -> None:
    serving = GenerateBaseServing.__new__(GenerateBaseServing)
    event = serving._convert_generation_error_to_streaming_response(GivenUp("r", "i0 was lost"))
    error = json.loads(event)["error"]
    assert (error["type"], error["code"]) == ("InternalServerError", 500)
    assert error["message"] == "The request was given up: i0 was lost."


async def test_stream_of_messages_ends_with_an_error_that_says_why() -> None:
    messages = AnthropicServingMessages.__new__(AnthropicServingMessages)
    tell_errors(SimpleNamespace(anthropic_serving_messages=messages))  # vLLM: "2 validation errors"
    chat = GenerateBaseServing.__new__(GenerateBaseServing)

    async def chunks() -> AsyncIterator[str]:
        for delta in ({"role": "assistant", "content": ""}, {"content": "hi"}):
            chunk = {"id": "x", "model": "m", "choices": [{"index": 0, "delta": delta}]}
            yield f"data: {json.dumps(chunk)}\n\n"
        error = chat._convert_generation_error_to_streaming_response(GivenUp("r", "i0 was lost"))
        yield f"data: {error}\n\n"
        yield "data: [DONE]\n\n"

    *_, said, end = [event async for event in messages.message_stream_converter(chunks())]  # type: ignore[arg-type]
    assert '"text":"hi"' in said
    assert json.loads(end.split("data: ")[1])["error"]["message"] == "The request was given up: i0 was lost."


@pytest.fixture
def responses() -> Any:
    """As far as it answers; whatever it asks for is given up."""
    responses: Any = OpenAIServingResponses.__new__(OpenAIServingResponses)
    responses.use_harmony, responses.event_store = False, {}
    responses.response_store, responses.response_store_lock = {}, asyncio.Lock()
    tell_errors(SimpleNamespace(openai_serving_responses=responses))

    async def given_up(*_: Any) -> AsyncIterator[Any]:
        raise GivenUp("r", "i0 was lost")
        yield

    responses._process_simple_streaming_events = given_up
    return responses


ASKED = (SamplingParams(max_tokens=1), None, SimpleNamespace(num_generated_tokens=0), "m", None, None, 1)
ERROR_EVENT = {
    "type": "error",
    "sequence_number": 2,
    "code": "500",
    "message": "The request was given up: i0 was lost.",
    "param": None,
}


def asked(responses: Any, **fields: Any) -> ResponsesRequest:
    """What is done in the background is kept for later."""
    request = ResponsesRequest.model_validate({"input": "hello", "model": "m", **fields})
    if request.background:
        queued: dict[str, Any] = {"model_name": "m", "created_time": 1, "output": [], "status": "queued"}
        kept = ResponsesResponse.from_request(request, ASKED[0], **queued)
        responses.response_store[request.request_id] = kept
    return request


async def test_stream_of_a_response_ends_with_an_error_that_says_why(responses: Any) -> None:
    events = responses.responses_stream_generator(asked(responses), *ASKED)
    *before, end = [json.loads(event.model_dump_json()) async for event in events]
    assert [event["type"] for event in before] == ["response.created", "response.in_progress"]
    assert end == ERROR_EVENT
    assert responses.response_store == {}


async def test_who_reads_a_response_from_the_background_reads_the_error_and_no_further(responses: Any) -> None:
    request = asked(responses, background=True, stream=True)
    await responses._run_background_request_stream(request, *ASKED)
    async with asyncio.timeout(10):
        events = await responses.retrieve_responses(request.request_id, None, stream=True)
        *_, end = [json.loads(event.model_dump_json()) async for event in events]
    assert end == ERROR_EVENT
    assert (await kept(responses, request))["status"] == "failed"


async def test_response_in_the_background_that_is_given_up_has_failed_and_says_why(responses: Any) -> None:
    request = asked(responses, background=True)
    ends = responses._process_simple_streaming_events()
    await responses._run_background_request(request, ASKED[0], ends, *ASKED[2:])
    said = await kept(responses, request)
    assert said["status"] == "failed"
    assert said["error"] == {"code": "server_error", "message": "The request was given up: i0 was lost."}


async def test_response_in_the_background_that_no_instance_can_take_has_failed(responses: Any, front: FrontEnd) -> None:
    async def nobody_there(*_: Any) -> AsyncIterator[Any]:
        await front.client.add_request_async(engine_request("r", data_parallel_rank=1))
        yield

    request = asked(responses, background=True)
    await responses._run_background_request(request, ASKED[0], nobody_there(), *ASKED[2:])
    said = await kept(responses, request)
    assert (said["status"], said["error"]["message"]) == ("failed", "No instance can take the request now.")


async def test_response_that_was_cancelled_stays_so(responses: Any) -> None:
    request = asked(responses, background=True, stream=True)
    responses.response_store[request.request_id].status = "cancelled"
    await responses._run_background_request_stream(request, *ASKED)
    assert (await kept(responses, request))["status"] == "cancelled"


async def kept(responses: Any, request: ResponsesRequest) -> dict[str, Any]:
    """As `GET /v1/responses/ID` shows it."""
    response = await responses.retrieve_responses(request.request_id, None, stream=False)
    shown: dict[str, Any] = response.model_dump()
    return shown
