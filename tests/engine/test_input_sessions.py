"""Streaming input sessions: a request whose prompt comes in chunks, each of which its engine answers to the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from queue import Queue
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

pytest.importorskip("vllm")

from engine_requests import engine_request
from small_engine import SmallEngine
from test_engine_client import B, FrontEnd, HalfLLM
from test_engine_client import front as front
from test_engine_client import llm as llm
from test_given_up import DELTAS, said, turns
from test_given_up import whole_llm as whole_llm
from vllm.engine.protocol import StreamingInput
from vllm.v1.engine import EngineCoreRequest, EngineCoreRequestType, FinishReason
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.request import Request

from llumnix.engine.vllm.between import RequestCodec
from llumnix.engine.vllm.instance.core import LlumnixEngineCore
from llumnix.engine.vllm.instance.ledger import Ledger
from llumnix.types import InstanceId, RequestId

ADD, ABORT = EngineCoreRequestType.ADD, EngineCoreRequestType.ABORT
LENGTH = FinishReason.LENGTH


@pytest.fixture
async def sent(front: FrontEnd) -> list[tuple[InstanceId, EngineCoreRequestType]]:
    """By a front end with two instances."""
    front.hear_report(B)
    front.admit(B)
    letters: list[tuple[InstanceId, EngineCoreRequestType]] = []
    send = front.client._send_to

    def keep(instance: InstanceId, kind: EngineCoreRequestType, what: Any) -> Any:
        letters.append((instance, kind))
        return send(instance, kind, what)

    front.client._send_to = keep  # type: ignore[method-assign]
    return letters


async def chunk(front: FrontEnd, last: bool = False) -> None:
    await front.client.add_request_async(engine_request("r", resumable=not last))


def owner(front: FrontEnd) -> InstanceId:
    session = front.client.streams.session_of("r")
    assert session is not None
    return session.stream.owner


async def test_all_chunks_go_to_the_instance_that_has_the_session(front: FrontEnd, sent: list[Any]) -> None:
    for reason in (LENGTH, FinishReason.STOP, FinishReason.REPETITION):
        await chunk(front)
        await front.hear(owner(front), said("r", 7, finish_reason=reason))
    first = owner(front)
    await front.client.abort_requests_async(["r"])
    assert sent == [(first, ADD)] * 3 + [(first, ABORT)]
    assert front.client.streams.sessions == {}
    assert front.tokens == [7, 7, 7]


@pytest.mark.parametrize("order", ["the last word comes after the answer", "the last word comes first"])
async def test_session_is_over_when_its_input_is_and_every_chunk_is_answered(
    front: FrontEnd, sent: list[Any], order: str
) -> None:
    over: list[int] = []
    front.client.streams.on_end = lambda session: over.append(len(session.tokens))
    await chunk(front)
    await chunk(front)
    where = owner(front)
    await front.hear(where, said("r", 1), said("r", 2, finish_reason=LENGTH))
    if order == "the last word comes first":
        await chunk(front, last=True)
    assert over == []
    await front.hear(where, said("r", 3, finish_reason=LENGTH))
    if order == "the last word comes after the answer":
        assert over == []
        await chunk(front, last=True)
    assert over == [3]
    assert (front.client.streams.sessions, front.client.machine.stream(RequestId("r"))) == ({}, None)
    assert {kind for _, kind in sent} == {ADD}


async def test_session_that_its_engine_aborts_is_freed_there_with_the_chunk_on_its_way(
    front: FrontEnd, sent: list[Any]
) -> None:
    """By `POST /pause?mode=abort`; the chunk would begin a session of which nobody knows."""
    await chunk(front)
    await chunk(front)
    where = owner(front)
    await front.hear(where, said("r", finish_reason=FinishReason.ABORT))
    assert sent == [(where, ADD), (where, ADD), (where, ABORT)]
    assert (front.errors, front.client.streams.sessions) == (["its engine aborted it"], {})


async def test_answer_to_a_chunk_that_a_connector_has_a_word_about_is_no_end(front: FrontEnd, sent: list[Any]) -> None:
    await chunk(front)
    where = owner(front)
    await front.hear(where, said("r", 1, finish_reason=LENGTH, kv_transfer_params={"block": 1}))
    await chunk(front)
    await front.hear(where, said("r", 2, finish_reason=LENGTH))
    await chunk(front, last=True)
    assert sent == [(where, ADD)] * 3
    assert front.tokens == [1, 2]
    assert front.client.streams.sessions == {}


async def test_client_hears_the_answer_to_each_chunk_and_then_the_end(
    whole_llm: HalfLLM, front: FrontEnd, sent: list[Any]
) -> None:
    inputs: asyncio.Queue[StreamingInput | None] = asyncio.Queue()
    heard: list[int] = []

    async def speak() -> AsyncIterator[StreamingInput]:
        while (spoken := await inputs.get()) is not None:
            yield spoken

    async def listen() -> None:
        async for output in whole_llm.generate(speak(), DELTAS, "r"):  # type: ignore[arg-type]
            heard.extend(output.outputs[0].token_ids)

    listener = asyncio.create_task(listen())
    for n in range(3):
        inputs.put_nowait(StreamingInput(prompt={"prompt_token_ids": [n, n]}))  # type: ignore[arg-type]
        await turns()
        await front.hear(owner(front), said("r", 2 * n))
        await front.hear(owner(front), said("r", 2 * n + 1, finish_reason=LENGTH))
        await turns()
    inputs.put_nowait(None)
    await asyncio.wait_for(listener, 10)
    assert heard == [0, 1, 2, 3, 4, 5]
    assert (whole_llm.get_num_unfinished_requests(), front.client.streams.sessions) == (0, {})
    assert {kind for _, kind in sent} == {ADD}


@pytest.mark.parametrize("refused", [False, True], ids=["the session is gone there", "chunks cannot be preprocessed"])
async def test_instance_counts_a_session_once_whatever_becomes_of_its_chunks(
    front: FrontEnd, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """As the front end charges it."""
    core: Any = LlumnixEngineCore.__new__(LlumnixEngineCore)
    core._office, core._ledger, core.output_queue = Mock(), Ledger(1), Queue()
    core._follower = SimpleNamespace(can_serve=lambda lora: True)
    core.scheduler = SimpleNamespace(requests={}, prefixes=None)  # it has ended what came
    core.mm_receiver_cache = core.request_block_hasher = None
    monkeypatch.setattr(EngineCoreProc, "_handle_client_request", lambda *_: None)
    codec = RequestCodec()

    async def arrives(_: InstanceId, kind: EngineCoreRequestType, request: EngineCoreRequest) -> None:
        request = codec.decode(codec.encode(request))
        if refused:
            core._handle_request_preproc_error(request)
        else:
            core._handle_client_request(kind, core.preprocess_add_request(request))

    monkeypatch.setattr(front.client, "_send_to", arrives)
    for last in (False, False, True):
        await chunk(front, last)
    assert core._ledger.seen() == (1,)


@pytest.mark.parametrize("queued", [False, True], ids=["one by one", "all at once"])
def test_engine_ends_as_many_outputs_as_there_were_chunks_and_frees_the_session_after_the_last_word(
    engine: SmallEngine, queued: bool
) -> None:
    """What the front end counts on (`Session.is_over`)."""
    scheduler, free_blocks = engine.scheduler, engine.free_blocks
    ends: list[FinishReason] = []

    def compute() -> None:
        for _ in range(10):
            planned = scheduler.schedule()
            names = list(planned.num_scheduled_tokens)
            outputs = scheduler.update_from_output(planned, engine.computed(names))
            ends.extend(each.finish_reason for of in outputs.values() for each in of.outputs if each.finish_reason)

    for _ in range(3):
        scheduler.add_request(_chunk(engine))
        if not queued:
            compute()
            assert scheduler.get_num_unfinished_requests() == 0
            assert engine.free_blocks < free_blocks
    scheduler.add_request(_chunk(engine, last=True))
    compute()
    assert ends == [LENGTH] * 3
    assert (scheduler.requests, engine.free_blocks) == ({}, free_blocks)


def _chunk(engine: SmallEngine, last: bool = False) -> Request:
    request = engine.make("r", 0, prompt_tokens=20, output_tokens=2)
    request.resumable = not last
    return request
