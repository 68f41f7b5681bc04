"""The front end's engine client when instances are known late, their ends too early, or a request cannot be sent.

Nobody is at the other end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

pytest.importorskip("vllm")

from engine_requests import engine_request
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.metrics.stats import SchedulerStats

from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig
from llumnix.control.messages import Adopted, AnyNotice, Moved, Verdict
from llumnix.engine.port import FrontEndSpec
from llumnix.engine.vllm.between import LAST_WORD, NOTICE, Introduction
from llumnix.engine.vllm.front_end import membership as membership_module
from llumnix.engine.vllm.front_end.client import LlumnixClient
from llumnix.engine.vllm.front_end.given_up import GivenUp, end_request
from llumnix.engine.vllm.front_end.llm import LONGEST_ID, LlumnixLLM
from llumnix.journal.journal import Journal
from llumnix.journal.stories import Stories
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.recording import RECORD, differences
from llumnix.types import Epoch, InstanceId, RequestId
from llumnix.wire.addresses import on_one_machine
from llumnix.wire.base import InstanceInfo
from llumnix.wire.news import InstanceGone, Report
from llumnix.wire.outbox import Mail
from move_outcomes import outcome

A, B = InstanceId("i0"), InstanceId("i1")
INDEX = {A: 0, B: 1}
SEEDED = SamplingParams(seed=1, temperature=1.0)
"""Cannot be computed anew."""


class FrontEnd:
    """Its client, and what came of it. Instance A takes requests."""

    def __init__(self, folder: Path, launcher: str = "local") -> None:
        self.posted: list[tuple[str, Mail]] = []
        self.errors: list[str] = []
        spec = FrontEndSpec(
            index=0,
            book=on_one_machine(folder),
            policy=PolicyConfig(),
            migration=MigrationConfig(),
            cluster=ClusterConfig(instances=2, launcher=launcher),
        )
        self.stories = Stories(Journal("f0"))
        observer = SimpleNamespace(
            **{name: lambda *_: None for name in ("replayed", "stayed", "moved")},
            failed=lambda session, why: self.errors.append(why),
            ended=lambda session: self.stories.over(session.story),
            stories=self.stories,
        )
        self.client = LlumnixClient(None, spec, lambda *letter: self.posted.append(letter), observer)
        self.hear_report(A)
        self.admit(A)

    def close(self) -> None:
        for instance in (A, B):
            self.lose(instance)  # ends what still calls it
        context = self.client.resources.ctx
        self.client.shutdown()
        context.destroy(linger=0)

    def hear_report(self, instance: InstanceId, seq: int = 1, seen: int = 0, slot: int | None = None) -> None:
        index = INDEX[instance]
        slot, box = index if slot is None else slot, f"box-{instance}"
        info = InstanceInfo(id=instance, index=index, slot=slot, pid=1, node="", control=box, data="")
        counted = msgspec.structs.replace(snapshot(instance, seq, seen), at=self.clock_of(instance))
        self.client.on_report(Report(info=info, snapshot=counted))

    def clock_of(self, instance: InstanceId) -> float:
        return 0.0

    def admit(self, instance: InstanceId, seq: int = 1, seen: int = 0) -> None:
        """As when it answers the first call, with the number and the count of its report of that moment. Its engine
        draws in a way that cannot be followed."""
        hello = Introduction(ready=b"", snapshot=snapshot(instance, seq, seen), seeds_lost="nobody knows its draws")
        self.client.membership.admit(self.client.members.known[instance], hello)

    @property
    def waiting(self) -> dict[InstanceId, int]:
        """As the dispatcher sees it."""
        return {each.id: each.waiting for each in self.client.machine.dispatcher.snapshot(0.0).instances}

    def lose(self, instance: InstanceId, expected: bool = False) -> None:
        self.client.on_gone(InstanceGone(instance=instance, index=INDEX[instance], why="", expected=expected))

    async def hear(self, instance: InstanceId, *outputs: EngineCoreOutput) -> None:
        """A message on the instance's token socket, as vLLM's socket task takes it."""
        message = EngineCoreOutputs(engine_index=INDEX[instance], outputs=list(outputs))
        await LlumnixClient.process_engine_outputs(self.client, message)
        if message.outputs:
            self.client.outputs_queue.put_nowait(message)

    @property
    def delivered(self) -> list[EngineCoreOutput]:
        queue = self.client.outputs_queue
        return [output for _ in range(queue.qsize()) for output in queue.get_nowait().outputs]  # type: ignore[union-attr]

    @property
    def tokens(self) -> list[int]:
        return [token for output in self.delivered for token in output.new_token_ids]


def snapshot(instance: InstanceId, seq: int, seen: int) -> InstanceSnapshot:
    return InstanceSnapshot(id=instance, seq=seq, at=0.0, total_blocks=100, free_blocks=100, dispatches_seen=(seen,))


def token(value: int, **fields: object) -> EngineCoreOutput:
    return EngineCoreOutput(request_id="r", new_token_ids=[value], **fields)  # type: ignore[arg-type]


def notice(content: AnyNotice) -> EngineCoreOutput:
    marked = {NOTICE: msgspec.msgpack.encode(content)}
    return EngineCoreOutput(request_id=content.request, new_token_ids=[], kv_transfer_params=marked)


def adopted(sender: InstanceId, output_tokens: int) -> EngineCoreOutput:
    header: dict[str, Any] = {"request": RequestId("r"), "epoch": Epoch(1)}
    return notice(Adopted(**header, sender=sender, source=A, output_tokens=output_tokens))


def moved(sender: InstanceId, target: InstanceId) -> EngineCoreOutput:
    return notice(Moved(request=RequestId("r"), epoch=Epoch(1), sender=sender, outcome=outcome(sender, target)))


LAST = EngineCoreOutput(request_id="", new_token_ids=[], kv_transfer_params={LAST_WORD: True})


@pytest.fixture
async def front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FrontEnd]:
    """Whatever happens to it, its mind answers the same when it hears the recording."""
    monkeypatch.setenv(RECORD, str(tmp_path / "recordings"))
    front = FrontEnd(tmp_path)
    yield front
    front.close()
    (recording,) = (tmp_path / "recordings").iterdir()
    assert differences(recording) == []


async def test_request_moves_to_an_instance_that_takes_no_requests_of_this_front_end_yet(front: FrontEnd) -> None:
    await front.client.add_request_async(engine_request("r"))
    await front.hear(A, token(1))
    front.hear_report(B)
    await front.hear(B, adopted(B, 1))
    await front.hear(B, token(2))
    await front.hear(A, moved(A, B))
    await front.hear(B, token(3, finish_reason=FinishReason.LENGTH))
    assert front.tokens == [1, 2, 3]
    (verdict,) = front.posted
    assert verdict[0] == "box-i1"
    assert isinstance(verdict[1], Verdict)


async def test_request_moves_to_an_instance_whose_first_report_is_still_to_be_read(front: FrontEnd) -> None:
    await front.client.add_request_async(engine_request("r"))
    await front.hear(B, adopted(B, 0))
    await front.hear(B, token(1))
    await front.hear(A, moved(A, B))
    assert front.tokens == []
    front.hear_report(B)
    await front.hear(B, token(2))
    assert front.tokens == [1, 2]


async def test_new_owner_dies_before_it_takes_requests(front: FrontEnd) -> None:
    await front.client.add_request_async(engine_request("r", sampling_params=SEEDED))
    await front.hear(A, token(1))
    front.hear_report(B)
    await front.hear(B, adopted(B, 1))
    await front.hear(A, moved(A, B))
    front.lose(B)
    assert front.tokens == [1]
    assert front.errors == ["i1 was lost; the stream cannot be continued exactly: nobody knows its draws"]


async def test_new_owner_dies_before_it_was_ever_heard_of(front: FrontEnd) -> None:
    await front.client.add_request_async(engine_request("r", sampling_params=SEEDED))
    await front.hear(A, token(1))
    front.lose(B)
    await front.hear(A, moved(A, B))
    assert front.errors[0].startswith("i1, where it had moved, was lost")


async def test_end_of_a_drained_instance_overtakes_its_last_words(front: FrontEnd) -> None:
    await front.client.add_request_async(engine_request("r", sampling_params=SEEDED))
    front.hear_report(B)
    front.admit(B)
    await front.hear(A, token(1))
    front.lose(A, expected=True)
    assert not front.client.members.by_id.keys() & {A}
    await front.hear(A, token(2), moved(A, B))
    await front.hear(A, LAST)
    await front.hear(B, adopted(B, 2))
    await front.hear(B, token(3))
    assert (front.tokens, front.errors) == ([1, 2, 3], [])


async def test_end_of_a_drained_instance_without_a_last_word(front: FrontEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_module, "_LAST_WORD_TIMEOUT_S", 0.0)
    await front.client.add_request_async(engine_request("r", sampling_params=SEEDED))
    await front.hear(A, token(1))
    front.lose(A, expected=True)
    _, _, end = [await front.client.outputs_queue.get() for _ in range(3)]  # after vLLM's gauges of it
    assert isinstance(end, GivenUp)
    assert front.errors[0].startswith("i0 was lost")


async def test_lost_instance_is_not_heard_any_more(front: FrontEnd) -> None:
    await front.client.add_request_async(engine_request("r"))
    front.lose(A)
    await front.hear(A, token(1))
    assert front.tokens == []


async def test_instance_that_was_lost_counts_no_requests_for_vllm(front: FrontEnd) -> None:
    """Else vLLM's gauges told for ever what it said last."""
    front.client._kv_event_sources = {INDEX[A]: "its events", INDEX[B]: "others"}  # type: ignore[dict-item]
    front.lose(A)
    told = front.client.outputs_queue.get_nowait()
    assert (told.engine_index, told.scheduler_stats, told.outputs) == (INDEX[A], SchedulerStats(), [])  # type: ignore[union-attr]
    assert list(front.client.get_kv_event_sources()) == [INDEX[B]]
    front.lose(A)
    assert front.client.outputs_queue.empty(), "once"


async def test_end_of_an_instance_says_nothing_of_its_successor(front: FrontEnd) -> None:
    """Which was heard before the end was, and has the slot now."""
    front.hear_report(B, slot=INDEX[A])
    front.client._kv_event_sources = {INDEX[A]: "of the successor"}  # type: ignore[dict-item]
    front.lose(A)
    assert front.client.outputs_queue.empty()
    assert list(front.client.get_kv_event_sources()) == [INDEX[A]]


async def test_chunk_for_an_instance_that_is_just_gone_ends_with_the_session_and_not_before(front: FrontEnd) -> None:
    chunk = engine_request("r", resumable=True)
    await front.client.add_request_async(chunk)
    await front.hear(A, token(1))
    front.lose(A, expected=True)
    await front.client.add_request_async(chunk)
    assert front.errors == []
    await front.hear(A, LAST)
    (error,) = front.errors
    assert error.endswith("it is a streaming input session")


async def test_session_is_not_begun_anew_with_its_first_chunk_alone(front: FrontEnd) -> None:
    front.hear_report(B)
    front.admit(B)
    for _ in range(2):
        await front.client.add_request_async(engine_request("r", resumable=True))
    front.lose(A)
    (error,) = front.errors
    assert error.endswith("it is a streaming input session")


async def test_request_that_is_there_only_to_be_aborted_leaves_no_stream_behind(front: FrontEnd) -> None:
    """Its engine adds it, aborts it, and says nothing of it."""
    await front.client.add_request_async(engine_request("r", abort_immediately=True))
    assert front.client.streams.sessions == {}
    assert front.client.machine.stream(RequestId("r")) is None
    (entry,) = [each for each in front.stories.journal.newest(9).entries if each.kind == "ended"]
    assert entry.what.outcome == "abort"  # type: ignore[union-attr]
    assert front.waiting == {A: 1}  # until its report counts it
    front.hear_report(A, seq=2, seen=1)
    assert front.waiting == {A: 0}


UNSENDABLE = [
    {"sampling_params": SamplingParams(top_k=2**70)},
    {"cache_salt": "\ud800"},
]


@pytest.mark.parametrize("fields", UNSENDABLE, ids=["number", "text"])
async def test_request_that_cannot_be_sent_leaves_nothing_behind(front: FrontEnd, fields: dict[str, Any]) -> None:
    for number in range(50):
        with pytest.raises(VLLMValidationError, match="has a value that cannot be sent to an engine"):
            await front.client.add_request_async(engine_request(f"r{number}", **fields))
    (instance,) = front.client.machine.dispatcher.snapshot(0.0).instances
    assert (instance.waiting, instance.queued_blocks) == (0, 0)
    assert front.client.streams.sessions == {}


class HalfLLM(LlumnixLLM):
    """As far as it takes in a request."""

    def __init__(self) -> None: ...
    def __del__(self) -> None: ...


@pytest.fixture
def llm(front: FrontEnd) -> LlumnixLLM:
    llm = HalfLLM()
    llm.engine_core, llm.output_processor = front.client, OutputProcessor(None, log_stats=False)
    llm._spec, llm._closing, llm.log_requests = front.client.spec, False, False
    llm.scheduler_config = SimpleNamespace(max_num_queued_reqs=None, max_num_queued_tokens=None)  # type: ignore[assignment]
    llm.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_size=1))  # type: ignore[assignment]
    front.client.on_given_up = partial(end_request, requests=llm.output_processor, client=front.client)
    return llm


async def add(llm: LlumnixLLM, name: str = "r", **fields: Any) -> None:
    request = engine_request(name, external_req_id=name, **fields)
    await llm._add_request(request, "hello", None, 0, RequestOutputCollector(RequestOutputKind.DELTA, name))


@pytest.mark.parametrize("fields", [{"data_parallel_rank": 1}, *UNSENDABLE], ids=["nobody there", "number", "text"])
async def test_refused_request_is_not_waited_for_at_the_end(llm: LlumnixLLM, fields: dict[str, Any]) -> None:
    with pytest.raises((GracefulHTTPError, VLLMValidationError)):
        await add(llm, **fields)
    assert llm.get_num_unfinished_requests() == 0
    assert not llm.output_processor.external_req_ids


def test_request_that_is_refused_at_the_door_is_noted_once(llm: LlumnixLLM, front: FrontEnd) -> None:
    llm._closing = True
    with pytest.raises(GracefulHTTPError, match="shutting down"):
        llm.check_admission(1, "cmpl-9-0")
    (entry,) = front.stories.journal.newest(9).entries
    assert (entry.kind, entry.request, entry.why) == ("refused", "cmpl-9", "The server is shutting down.")


async def test_id_that_would_fill_the_memory_is_refused_and_remembered_nowhere(
    llm: LlumnixLLM, front: FrontEnd
) -> None:
    await add(llm, "r" * LONGEST_ID)
    with pytest.raises(VLLMValidationError, match="at most 1024 characters, not 1025"):
        await add(llm, "r" * LONGEST_ID + "r")
    llm._closing = True
    with pytest.raises(VLLMValidationError):
        llm.check_admission(1, "cmpl-" + "9" * LONGEST_ID)
    assert {len(entry.request or "") for entry in front.stories.journal.newest(9).entries} == {LONGEST_ID}
    assert llm.get_num_unfinished_requests() == 1


async def test_accepted_request_is_waited_for_at_the_end(llm: LlumnixLLM) -> None:
    await add(llm)
    assert llm.get_num_unfinished_requests() == 1


async def test_abort_of_nobody_is_told_to_no_other_front_end(llm: LlumnixLLM) -> None:
    """There it would mean all."""
    told: list[tuple[str, ...]] = []

    async def elsewhere(request_ids: tuple[str, ...]) -> None:
        told.append(request_ids)

    llm.abort_elsewhere = elsewhere
    for request_ids in ([], ["cmpl-1"]):
        await llm.abort(request_ids)
    assert told == [("cmpl-1",)]


def test_place_that_a_client_may_name_is_one_that_there_is(llm: LlumnixLLM) -> None:
    """vLLM itself answers 400 for all others."""
    llm.input_processor, llm.logger_manager = SimpleNamespace(), None  # type: ignore[assignment]
    llm.grow(3)
    assert llm.input_processor.vllm_config.parallel_config.data_parallel_size == 3
    assert llm.vllm_config.parallel_config.data_parallel_size == 1


async def test_requests_of_the_front_end_that_died_here_are_not_waited_for(front: FrontEnd) -> None:
    """B counts 300 of that one's, and some more while its reports of before are still being read."""
    for seq in (5, 6, 7):
        front.hear_report(B, seq=seq, seen=300)
    front.admit(B, seq=9, seen=310)
    front.hear_report(B, seq=8, seen=305)
    for number in range(4):
        await front.client.add_request_async(engine_request(f"r{number}"))
    assert front.waiting == {A: 2, B: 2}
    front.hear_report(B, seq=10, seen=312)
    front.hear_report(A, seq=2, seen=2)
    assert front.waiting == {A: 0, B: 0}


async def test_instance_that_is_called_is_courted_until_it_takes_requests(front: FrontEnd) -> None:
    front.hear_report(B)
    assert list(front.client.members.courted) == [B]
    front.admit(B)
    assert not front.client.members.courted
