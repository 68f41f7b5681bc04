"""What a front end knows of a stream: the downtime of its moves, and whether it can be continued elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from engine_requests import PICTURE, engine_request
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.request import Request

from llumnix.control.stream import Stream
from llumnix.engine.vllm.front_end.session import Session, arrival, why_not_exact
from llumnix.journal.journal import Journal
from llumnix.journal.story import Story
from llumnix.types import Epoch, InstanceId, RequestId

A, B, R = InstanceId("a"), InstanceId("b"), RequestId("r")


def session(**fields: Any) -> Session:
    return Session(engine_request(R, **fields), R, Stream(R, A, live=A), Story(Journal("f0"), 0.0, R, R, 1))


def speak(one: Session, *times: float) -> list[float | None]:
    return [one.tokens_delivered([7], at) for at in times]


def test_downtime_is_the_gap_less_one_normal_step() -> None:
    one = session()
    assert speak(one, 0.00, 0.01, 0.02) == [None, None, None]
    one.passes(Epoch(1), A, 0.0)
    (downtime_s,) = speak(one, 0.05)
    assert downtime_s == pytest.approx(0.02)


def test_gap_of_a_move_does_not_count_as_a_normal_step() -> None:
    one = session()
    speak(one, 0.00, 0.01)
    one.passes(Epoch(1), A, 0.0)
    speak(one, 0.51)
    speak(one, 0.52)
    one.passes(Epoch(1), A, 0.0)
    (downtime_s,) = speak(one, 0.54)
    assert downtime_s == pytest.approx(0.01)


def test_quicker_than_a_normal_step_is_no_negative_downtime() -> None:
    one = session()
    speak(one, 0.00, 0.01)
    one.passes(Epoch(1), A, 0.0)
    assert speak(one, 0.011) == [0.0]


def test_move_before_the_first_token_has_no_downtime() -> None:
    one = session()
    one.passes(Epoch(1), A, 0.0)
    assert one.before_move_s is None
    assert speak(one, 1.0) == [None]


def test_normal_step_is_smoothed() -> None:
    one = session()
    speak(one, 0.0, 1.0, 3.0)
    assert one.step_s == pytest.approx(1.0 + 0.1 * (2.0 - 1.0))


def test_empty_output_is_no_token() -> None:
    one = session()
    speak(one, 0.0)
    assert one.tokens == [7]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ""),
        ({"sampling_params": SamplingParams(temperature=1.0)}, ""),
        ({"sampling_params": SamplingParams(temperature=0.0, seed=1)}, ""),
        ({"sampling_params": SamplingParams(temperature=1.0, seed=1)}, "who draws is gone"),
        ({"sampling_params": None}, "not a generation"),
        ({"resumable": True}, "streaming input session"),
        ({"mm_features": [PICTURE]}, ""),
        ({"prompt_token_ids": None, "prompt_embeds": torch.zeros(3, 4)}, ""),
        (
            {
                "sampling_params": SamplingParams(structured_outputs=StructuredOutputsParams(regex="a+")),
                "reasoning_parser_kwargs": {"chat_template_kwargs": {}},
            },
            "",
        ),
        ({"sampling_params": SamplingParams(structured_outputs=StructuredOutputsParams(regex="a+"))}, ""),
    ],
)
def test_stream_in_the_middle_is_continued_only_if_that_is_exact(fields: dict[str, Any], words: str) -> None:
    why = why_not_exact(engine_request(R, **fields), "who draws is gone")
    assert bool(why) == bool(words)
    assert words in why


def test_seeded_stream_is_continued_where_the_engines_know_how() -> None:
    assert why_not_exact(engine_request(R, sampling_params=SamplingParams(temperature=1.0, seed=1)), "") == ""


@pytest.mark.parametrize(
    ("fields", "chunks"),
    [
        ({}, 3),
        ({"sampling_params": SamplingParams(prompt_logprobs=1)}, 0),
        ({"sampling_params": None, "pooling_params": PoolingParams()}, 3),
        ({"sampling_params": None, "pooling_params": PoolingParams(skip_reading_prefix_cache=True)}, 0),
    ],
)
def test_request_that_may_not_begin_with_what_is_cached_has_no_names(fields: dict[str, Any], chunks: int) -> None:
    request = engine_request(R, prompt_token_ids=[1] * 100, **fields)
    told = arrival(request, 0.0, only_on=None, not_exact="", chunk_tokens=32)
    assert len(told.chunks) == chunks
    assert Request.from_engine_core_request(request, None).skip_reading_prefix_cache is (chunks == 0), "as vLLM has it"


def test_client_knows_the_external_id() -> None:
    assert session().client_id == R
    assert session(external_req_id="cmpl-1-0").client_id == "cmpl-1-0"
