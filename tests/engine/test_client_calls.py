"""Answers that a front end gets from engines, its predecessor's among them."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("vllm")

from vllm.v1.engine import UtilityOutput
from vllm.v1.engine.core_client import AsyncMPClient, _process_utility_output
from vllm.v1.serial_utils import UtilityResult

from llumnix.engine.vllm import versions
from llumnix.engine.vllm.front_end.client import LlumnixClient
from llumnix.engine.vllm.front_end.client_setup import Calls

FIT_AS_THEY_ARE = {
    "get_output_async": "from all engines",
    "get_supported_tasks_async": "the same everywhere",
    "execute_dummy_batch_async": "nobody calls it",
    "get_weight_version_async": "the same everywhere, as weights stay",
    "set_weight_version_async": "refused before it is called",
    "add_lora_async": "on all, and for those to come when adapters.py has seen it work",
    "remove_lora_async": "nobody calls it: an adapter is forgotten, and its memory used again in time",
    "list_loras_async": "nobody calls it",
    "pin_lora_async": "nobody calls it",
    "save_sharded_state_async": "nobody calls it",
}
"""Calls of vLLM's client that do what they say over many engines, or that no route leads to."""

if versions.RELEASE >= (0, 32):
    FIT_AS_THEY_ARE["call_utility_consensus_async"] = "asks all"


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


def test_every_call_of_vllm_is_made_for_many_engines_or_fits_them_as_it_is() -> None:
    """Else a new one would reach one engine, or not those that start later."""
    theirs = {name for name in vars(AsyncMPClient) if name.endswith("_async") and not name.startswith("_")}
    ours = vars(LlumnixClient).keys()
    assert theirs - ours - FIT_AS_THEY_ARE.keys() == set()
    assert FIT_AS_THEY_ARE.keys() - theirs == set()


async def test_call_that_was_given_up_is_forgotten() -> None:
    """Its engine is gone, so no answer will ever take it away."""
    calls = Calls()
    calls[1] = asyncio.get_running_loop().create_future()
    calls[1].cancel()
    await asyncio.sleep(0)
    assert not calls


async def test_weights_are_the_same_whatever_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM puts the rank in front, which is the slot where instances publish events of their caches."""
    answers = [[{"dp0:pp0:a": "1"}, {"dp0:pp1:b": "2"}], [{"dp3:pp0:a": "1"}, {"dp3:pp1:b": "2"}]]
    client = LlumnixClient.__new__(LlumnixClient)

    async def asked(_method: str) -> list[list[dict[str, str]]]:
        return answers

    monkeypatch.setattr(client, "call_utility_all_async", asked)
    assert await client.compute_weight_checksums_async() == answers[0]
    answers[1][1]["dp3:pp1:b"] = "3"
    with pytest.raises(RuntimeError, match="different weights"):
        await client.compute_weight_checksums_async()
