"""Answers that a front end gets from engines, its predecessor's among them."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("vllm")

from vllm.v1.engine import UtilityOutput
from vllm.v1.engine.core_client import _process_utility_output
from vllm.v1.serial_utils import UtilityResult

from llumnix.engine.vllm.client_setup import Calls


async def test_answer_to_our_own_call_arrives_once() -> None:
    calls = Calls()
    calls[1] = asyncio.get_running_loop().create_future()
    answer = calls[1]
    _process_utility_output(UtilityOutput(call_id=1, result=UtilityResult("here")), calls)
    assert await answer == "here"
    assert not calls


@pytest.mark.parametrize(
    "late", [UtilityOutput(call_id=7, result=UtilityResult(None)), UtilityOutput(call_id=7, failure_message="no room")]
)
async def test_answer_to_a_call_of_the_front_end_that_died_here_is_dropped(late: UtilityOutput) -> None:
    calls = Calls()
    calls[1] = asyncio.get_running_loop().create_future()
    _process_utility_output(late, calls)
    assert list(calls) == [1]
    assert not calls[1].done()
