"""What vLLM tells of a request's times when it moves between machines with clocks of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import pytest

pytest.importorskip("vllm")

from engine_requests import engine_request
from test_engine_client import INDEX, LAST, A, B, FrontEnd, adopted, moved
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput, EngineCoreOutputs
from vllm.v1.metrics.stats import IterationStats, LoRARequestStates, RequestStateStats

from llumnix.engine.vllm.front_end import clocks
from llumnix.engine.vllm.front_end.client import LlumnixClient
from llumnix.engine.vllm.front_end.clocks import Clocks
from llumnix.types import InstanceId

DAYS_S = 864_000.0
AHEAD_S = {A: 300.0, B: -DAYS_S}
"""What the clocks of their machines are ahead of ours."""


class FarFrontEnd(FrontEnd):
    def clock_of(self, instance: InstanceId) -> float:
        return monotonic() + AHEAD_S[instance]


class Told:
    """What vLLM counts of request "r" by all messages of its engines."""

    def __init__(self, front: FrontEnd) -> None:
        self._front = front
        self._first = True
        self.stats = RequestStateStats()
        self.between_tokens_s: list[float] = []

    async def say(self, instance: InstanceId, *outputs: EngineCoreOutput) -> None:
        at_s = self._front.clock_of(instance)
        message = EngineCoreOutputs(engine_index=INDEX[instance], outputs=list(outputs), timestamp=at_s)
        await LlumnixClient.process_engine_outputs(self._front.client, message)
        for output in message.outputs:
            counted = IterationStats()  # type: ignore[no-untyped-call]
            lora = LoRARequestStates(log_stats=False)
            counted.update_from_output(output, message.timestamp, self._first, self.stats, lora, None)
            self.between_tokens_s += counted.inter_token_latencies_iter
            self._first = False


def token(instance: InstanceId, *events: EngineCoreEventType) -> EngineCoreOutput:
    at_s = monotonic() + AHEAD_S[instance]
    said = [EngineCoreEvent.new_event(each, at_s) for each in events]
    return EngineCoreOutput(request_id="r", new_token_ids=[1], events=said or None)


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[FrontEnd]:
    front = FarFrontEnd(tmp_path, "ray")
    front.hear_report(B)
    front.admit(B)
    yield front
    front.close()


async def test_request_that_moves_to_a_machine_with_another_clock_and_is_drained_from_it(front: FrontEnd) -> None:
    told = Told(front)
    await front.client.add_request_async(engine_request("r"))
    assert front.client.streams.session_of("r").stream.owner == A  # type: ignore[union-attr]
    await told.say(A, token(A, EngineCoreEventType.QUEUED, EngineCoreEventType.SCHEDULED))
    await told.say(A, token(A))
    await told.say(B, adopted(B, 2))
    await told.say(A, moved(A, B))
    await told.say(B, token(B, EngineCoreEventType.SCHEDULED))
    front.lose(B, expected=True)
    await told.say(B, token(B))
    await told.say(B, LAST)
    assert len(told.between_tokens_s) == 3
    assert all(0.0 <= each < 60.0 for each in told.between_tokens_s), "not days, and not negative"
    stats = told.stats
    assert 0.0 <= stats.scheduled_ts - stats.queued_ts <= stats.first_token_ts - stats.queued_ts < 60.0
    assert abs(stats.last_token_ts - monotonic()) < 60.0, "by our clock, as what the front end itself says"
    assert front.client.membership._clocks._clocks.keys() == {A}, "what is gone is forgotten"


async def test_on_one_machine_times_stay_as_the_engine_says_them(tmp_path: Path) -> None:
    front = FrontEnd(tmp_path)
    await front.client.add_request_async(engine_request("r"))
    event = EngineCoreEvent.new_event(EngineCoreEventType.QUEUED, 7.0)
    message = EngineCoreOutputs(outputs=[EngineCoreOutput(request_id="r", new_token_ids=[1], events=[event])])
    message.timestamp = 8.0
    await LlumnixClient.process_engine_outputs(front.client, message)
    assert (message.timestamp, message.outputs[0].events[0].timestamp) == (8.0, 7.0)  # type: ignore[index]
    front.close()


def test_a_message_that_was_long_on_its_way_does_not_set_the_clock() -> None:
    ours = Clocks(one_machine=False)
    read = []
    for said_at_s, heard_at_s in [(1000.0, 10.0), (1001.0, 11.5), (1002.0, 12.0)]:
        message = EngineCoreOutputs(timestamp=said_at_s)
        ours.put_right(A, message, heard_at_s)
        read.append(message.timestamp)
    assert read == pytest.approx([10.0, 11.0, 12.0], abs=0.001)


def test_a_clock_that_runs_slower_than_ours_is_followed() -> None:
    ours = Clocks(one_machine=False)
    slower = 1 - clocks._DRIFT / 2
    for second in range(0, 1_000_000, 1000):
        message = EngineCoreOutputs(timestamp=5000.0 + second * slower)
        ours.put_right(A, message, float(second))
        assert message.timestamp == pytest.approx(second, abs=0.001)
