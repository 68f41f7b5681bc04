"""What vLLM makes of one request with n > 1, one after the other, on its way through the engine client."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from engine_requests import engine_request
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from test_admitting import client, hear, report, running, turn
from test_engine_client import FrontEnd, HalfLLM, front
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor

from llumnix.engine.vllm.front_end import llm as llm_module
from llumnix.engine.vllm.front_end.admitting import AdmittingClient
from llumnix.engine.vllm.front_end.client import LlumnixClient
from llumnix.engine.vllm.front_end.llm import LlumnixLLM
from llumnix.journal.journal import Journal
from llumnix.journal.stories import Stories

__all__ = ["client", "front"]  # fixtures


def llm_over(engine_core: LlumnixClient, stories: Stories, endpoint: str | None = None) -> LlumnixLLM:
    """As far as it takes in requests."""
    llm: Any = HalfLLM()
    llm.engine_core, llm.output_processor = engine_core, OutputProcessor(None, log_stats=False)
    llm._spec, llm._closing, llm.log_requests, llm.output_handler = engine_core.spec, False, False, None
    llm._run_output_handler = lambda: None
    llm.model_config, llm.observability_config = None, SimpleNamespace(otlp_traces_endpoint=endpoint)
    llm.scheduler_config = SimpleNamespace(max_num_queued_reqs=None, max_num_queued_tokens=None)
    llm.vllm_config = SimpleNamespace(cache_config=SimpleNamespace(kv_sharing_fast_prefill=False))
    steps = ("assign_request_id", "apply_watermarking", "resolve_watermarking")
    llm.input_processor = SimpleNamespace(**{step: lambda *_, **__: None for step in steps})
    llm.abort_elsewhere = llm_module._nowhere
    llm._accompany_requests(SimpleNamespace(stories=stories))
    made: LlumnixLLM = llm
    return made


def request_for(n: int, **fields: Any) -> EngineCoreRequest:
    params = SamplingParams(n=n, max_tokens=4, detokenize=False)
    return engine_request("r", external_req_id="r", sampling_params=params, **fields)


async def add(llm: LlumnixLLM, request: EngineCoreRequest) -> None:
    assert request.sampling_params is not None
    await llm.add_request("r", request, request.sampling_params, prompt_text="x")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """All spans that ended."""
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return memory


def roots(memory: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in memory.get_finished_spans() if span.name == "llumnix.request"]


async def test_each_of_several_sequences_is_traced(front: FrontEnd, memory: InMemorySpanExporter) -> None:
    llm = llm_over(front.client, front.stories, "http://collector")
    await add(llm, request_for(2))
    sessions = front.client.streams.sessions
    assert list(sessions) == ["0_r", "1_r"]
    headers = [session.request.trace_headers for session in sessions.values()]
    assert all(headers), "they go with it"
    assert headers[0] != headers[1]
    await llm.abort("r")
    assert {span.attributes["gen_ai.request.id"] for span in roots(memory)} == {"r"}  # type: ignore[index]
    assert [span.attributes["llumnix.outcome"] for span in roots(memory)] == ["abort", "abort"]  # type: ignore[index]


async def test_sequence_that_cannot_be_sent_is_traced_with_the_reason(
    front: FrontEnd, memory: InMemorySpanExporter
) -> None:
    llm = llm_over(front.client, front.stories, "http://collector")
    with pytest.raises(VLLMValidationError):
        await add(llm, request_for(2, cache_salt="\ud800"))
    (root,) = roots(memory)
    assert root.status.description == "it could not be sent"
    assert len(llm._tracing or ()) == 0
    assert llm.get_num_unfinished_requests() == 0


async def test_sequence_that_is_aborted_while_it_is_held_leaves_no_span_open(
    client: AdmittingClient, memory: InMemorySpanExporter
) -> None:
    llm = llm_over(client, Stories(Journal("f0")), "http://collector")
    report(client, 1, waiting=2)
    asked = asyncio.create_task(add(llm, request_for(1)))
    await turn()
    assert client.desk.held == 1
    await llm.abort("r", internal=True)
    await asked
    (root,) = roots(memory)
    assert root.status.description == "aborted"
    assert len(llm._tracing or ()) == 0


async def test_sequences_that_come_after_an_abort_are_not_sent(client: AdmittingClient) -> None:
    """Two may run, so the third of four waits when all are aborted."""
    llm = llm_over(client, Stories(Journal("f0")))
    report(client, 1)
    asked = asyncio.create_task(add(llm, request_for(4)))
    await turn()
    assert (list(client.streams.sessions), client.desk.held) == (["0_r", "1_r"], 1)
    await llm.abort("r")
    await asked
    assert (list(client.streams.sessions), client.desk.held, running(client)) == ([], 0, 0)


async def test_request_that_is_aborted_between_its_turn_and_its_sending_is_not_sent(client: AdmittingClient) -> None:
    llm = llm_over(client, Stories(Journal("f0")))
    report(client, 1)
    asked = asyncio.create_task(add(llm, request_for(3)))
    await turn()
    report(client, 2, seen=2)
    await hear(client, "0_r", 1, FinishReason.STOP)
    assert client.desk.held == 0, "the third has its turn, and its task has not gone on yet"
    await llm.abort("r")
    await asked
    assert (list(client.streams.sessions), client.desk.held, running(client)) == ([], 0, 0)


async def test_without_classes_sequences_that_come_after_an_abort_are_not_sent_either(front: FrontEnd) -> None:
    llm = llm_over(front.client, front.stories)
    send = front.client._send_to

    def aborted_meanwhile(*what: Any) -> Any:
        front.client._send_to = send  # type: ignore[method-assign]
        sent = send(*what)

        async def abort() -> None:
            await sent
            await llm.abort("r")

        return abort()

    front.client._send_to = aborted_meanwhile  # type: ignore[assignment, method-assign]
    await add(llm, request_for(3))
    assert front.client.streams.sessions == {}
