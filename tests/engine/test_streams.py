"""The streams of a front end when instances come, go and lie: told without engines or sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest

pytest.importorskip("vllm")

import torch
from engine_requests import engine_request
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequestType, FinishReason
from vllm.v1.metrics.stats import PrefillStats

from llumnix.config import PolicyConfig
from llumnix.control.front_end import FrontEndMachine
from llumnix.control.front_end_events import ReplayAt, SendTo
from llumnix.control.messages import Adopted, Moved, Stayed
from llumnix.engine.vllm.between import LAST_WORD, NOTICE, THROWN_AWAY, TURNED_AWAY, Resume
from llumnix.engine.vllm.front_end.client_access import ClientAccess
from llumnix.engine.vllm.front_end.given_up import GivenUp
from llumnix.engine.vllm.front_end.members import Members, first_answer, unless_gone
from llumnix.engine.vllm.front_end.resuming import ENGINE_ENDS
from llumnix.engine.vllm.front_end.session import Session
from llumnix.engine.vllm.front_end.streams import Streams
from llumnix.journal.journal import Journal
from llumnix.journal.stories import Stories
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import Epoch, InstanceId, InstanceState, RequestId, Role
from llumnix.wire.base import InstanceInfo
from llumnix.wire.news import Report
from llumnix.wire.outbox import Mail
from llumnix.wire.to_instance import MoveOut

A, B, C = InstanceId("a"), InstanceId("b"), InstanceId("c")
MOST_MEDIA_BYTES = 1000


class FrontEnd:
    """Streams, and everything they ask for."""

    def __init__(self, *instances: InstanceId) -> None:
        self.members = Members()
        self.sent: list[tuple[InstanceId, EngineCoreRequestType, Any]] = []
        self.emitted: list[EngineCoreOutput] = []
        self.given_up: list[GivenUp] = []
        self.resumed: list[tuple[InstanceId, Resume]] = []
        self.answer_to_resume: Exception | None = None
        self.why_failed: list[str] = []
        self.mailed: list[tuple[str, MoveOut]] = []
        self.last_words: list[InstanceId] = []
        self.replays: list[ReplayAt] = []
        self.stories = Stories(Journal("f0"))
        access = ClientAccess(
            send=lambda *letter: self.sent.append(letter),
            resume=self._resume,
            give_up=self.given_up.append,
            post=self._post,
            emit=self.emitted.extend,
            spawn=_run,
            last_word=self.last_words.append,
        )
        self.streams = Streams(self.members, FrontEndMachine(PolicyConfig()), access, self, MOST_MEDIA_BYTES)
        for instance in instances:
            self.join(instance)

    def join(self, instance: InstanceId) -> None:
        index = len(self.members.known)
        info = InstanceInfo(id=instance, index=index, slot=index, pid=1, node="", control=f"to {instance}", data="")
        self.members.admit(self.members.call(Report(info=info, snapshot=_snapshot(instance))))
        self.streams.reported(_snapshot(instance))

    def lose(self, instance: InstanceId) -> None:
        self.members.remove(instance)
        self.streams.departed(instance)

    def open(self, request_id: str = "r", **fields: Any) -> InstanceId:
        answer = self.streams.open(engine_request(request_id, **fields))
        assert isinstance(answer, SendTo)
        return answer.instance

    def replayed(self, replay: ReplayAt) -> None:
        self.replays.append(replay)

    def stayed(self, session: Session, notice: Stayed) -> None: ...
    def moved(self, session: Session, notice: Moved, downtime_s: float | None, ago_s: float) -> None: ...

    def ended(self, session: Session) -> None:
        self.stories.over(session.story)

    def failed(self, session: Session, why: str) -> None:
        self.why_failed.append(why)

    async def _resume(self, instance: InstanceId, payload: bytes) -> None:
        self.resumed.append((instance, msgspec.msgpack.decode(payload, type=Resume)))
        if self.answer_to_resume is not None:
            raise self.answer_to_resume

    def _post(self, address: str, message: Mail) -> None:
        assert isinstance(message, MoveOut), "nobody is asked to arbitrate here"
        self.mailed.append((address, message))


def _snapshot(instance: InstanceId, seq: int = 1, **fields: Any) -> InstanceSnapshot:
    return InstanceSnapshot(id=instance, seq=seq, at=0.0, total_blocks=100, free_blocks=100, **fields)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """What is spawned here never waits for anything."""
    with pytest.raises(StopIteration):
        work.send(None)


def _token(request_id: str, token: int, **fields: Any) -> EngineCoreOutput:
    return EngineCoreOutput(request_id=request_id, new_token_ids=[token], **fields)


def _notice(key: str, value: object = True) -> EngineCoreOutput:
    return EngineCoreOutput(request_id="", new_token_ids=[], kv_transfer_params={key: value})


def _other(instance: InstanceId) -> InstanceId:
    return B if instance == A else A


def test_stream_goes_on_elsewhere_under_a_new_id_that_its_client_does_not_see() -> None:
    front = FrontEnd(A, B)
    first = front.open()
    front.streams.sort_out(first, [_token("r", 7), _token("r", 8)])
    front.lose(first)
    ((second, resume),) = front.resumed
    assert second == _other(first)
    assert resume.output_token_ids == [7, 8]
    (delivered,) = front.streams.sort_out(second, [_token("r~1", 9)])
    assert (delivered.request_id, delivered.new_token_ids) == ("r", [9])


def test_request_that_said_nothing_yet_is_simply_sent_again() -> None:
    front = FrontEnd(A, B)
    first = front.open()
    front.lose(first)
    ((to, kind, renamed),) = front.sent
    assert (to, kind, renamed.request_id) == (_other(first), EngineCoreRequestType.ADD, "r~1")
    assert not front.resumed


def test_what_a_lost_owner_still_says_is_not_delivered() -> None:
    front = FrontEnd(A, B)
    first = front.open()
    front.lose(first)
    assert front.streams.sort_out(first, [_token("r", 7)]) == []


def test_stream_without_a_place_waits_for_an_instance() -> None:
    front = FrontEnd(A)
    front.open()
    front.streams.sort_out(A, [_token("r", 7)])
    front.lose(A)
    assert (front.streams.parked, front.resumed) == (1, [])
    front.join(B)
    assert front.streams.parked == 0
    assert [(to, resume.output_token_ids) for to, resume in front.resumed] == [(B, [7])]


def test_client_that_leaves_while_its_stream_waits_for_a_place_is_forgotten() -> None:
    front = FrontEnd(A)
    front.open()
    front.lose(A)
    front.streams.abort("r")
    front.join(B)
    assert (front.sent, front.resumed, front.streams.sessions) == ([], [], {})


def test_client_that_leaves_after_a_replay_ends_the_request_where_it_runs_now() -> None:
    front = FrontEnd(A, B)
    first = front.open()
    front.lose(first)
    front.sent.clear()
    front.streams.abort("r")
    assert front.sent == [(_other(first), EngineCoreRequestType.ABORT, ["r~1"])]
    assert front.streams.sessions == {}


def test_engine_that_cannot_take_up_a_stream_ends_it_with_an_error() -> None:
    front = FrontEnd(A, B)
    first = front.open()
    front.streams.sort_out(first, [_token("r", 7)])
    front.answer_to_resume = RuntimeError("its grammar does not fit")
    front.lose(first)
    (end,) = front.given_up
    assert (end.request_id, str(end)) == (
        "r",
        "The request was given up: token replay failed: its grammar does not fit.",
    )
    assert front.why_failed == ["token replay failed: its grammar does not fit"]
    assert front.streams.sessions == {}


def test_stream_that_an_ending_engine_does_not_take_up_goes_on_elsewhere() -> None:
    front = FrontEnd(A, B)
    first = front.open()
    front.streams.sort_out(first, [_token("r", 7)])
    front.join(C)
    front.answer_to_resume = RuntimeError(ENGINE_ENDS)
    front.lose(first)
    (here, _), (there, resume) = front.resumed[:2]
    assert {here, there} == {A, B, C} - {first}
    assert resume.output_token_ids == [7]
    assert (front.streams.parked, front.emitted) == (1, [])  # the other one ends, too


def test_request_that_an_ending_engine_turns_away_is_sent_elsewhere() -> None:
    front = FrontEnd(A, B)
    first = front.open()
    turned_away = _notice(TURNED_AWAY)
    turned_away.request_id = "r"
    assert front.streams.sort_out(first, [turned_away]) == []
    adds = [(to, what.request_id) for to, kind, what in front.sent if kind == EngineCoreRequestType.ADD]
    assert adds == [(_other(first), "r~1")]
    assert [front.open(f"r{n}") for n in range(3)] == [_other(first)] * 3  # it takes no others either


@pytest.mark.parametrize("said", [b"", b"\xc1", msgspec.msgpack.encode({"type": "Sold"}), 7, None])
def test_notice_that_cannot_be_read_ends_the_stream_that_it_speaks_of_and_no_other(said: object) -> None:
    front = FrontEnd(A)
    front.open("r")
    front.open("s")
    unreadable = EngineCoreOutput(request_id="r", new_token_ids=[], kv_transfer_params={NOTICE: said})
    kept = front.streams.sort_out(A, [_token("r", 7), unreadable, _token("s", 8)])
    assert [(each.request_id, each.new_token_ids) for each in kept] == [("r", [7]), ("s", [8])]
    assert [end.request_id for end in front.given_up] == ["r"]
    assert "cannot be read" in front.why_failed[0]
    assert front.sent == [(A, EngineCoreRequestType.ABORT, ["r"])]


def test_last_word_of_an_instance_is_told() -> None:
    front = FrontEnd(A)
    assert front.streams.sort_out(A, [_notice(LAST_WORD)]) == []
    assert front.last_words == [A]


def test_client_that_left_while_its_request_moved_frees_it_once_at_the_new_owner() -> None:
    front = FrontEnd(A, B)
    first = front.open()
    front.streams.abort("r")
    front.sent.clear()
    adopted = Adopted(request=RequestId("r"), epoch=Epoch(1), sender=_other(first), source=first, output_tokens=0)
    front.streams.sort_out(_other(first), [_notice(NOTICE, msgspec.msgpack.encode(adopted))])
    assert front.sent == [(_other(first), EngineCoreRequestType.ABORT, ["r"])]


def test_stream_that_cannot_be_continued_exactly_ends_with_the_reason() -> None:
    front = FrontEnd(A, B)
    front.streams.seeds_lost = "who draws is gone"
    first = front.open(sampling_params=SamplingParams(temperature=1.0, seed=1))
    front.streams.sort_out(first, [_token("r", 7)])
    front.lose(first)
    assert front.why_failed[0].endswith("cannot be continued exactly: who draws is gone")
    assert [end.request_id for end in front.given_up] == ["r"]


def test_seeded_stream_whose_instances_die_goes_on_with_all_its_tokens_each_time() -> None:
    front = FrontEnd(A, B, C)
    owner, said = front.open(sampling_params=SamplingParams(temperature=1.0, seed=1)), []
    for token, name in ((7, "r"), (8, "r~1")):
        front.streams.sort_out(owner, [_token(name, token)])
        front.lose(owner)
        owner, resume = front.resumed[-1]
        said.append((resume.request_id, resume.output_token_ids))
    assert said == [("r~1", [7]), ("r~2", [7, 8])]
    assert front.why_failed == []


def test_tokens_that_were_drawn_for_nobody_count_in_a_replay() -> None:
    front = FrontEnd(A, B)
    owner = front.open(sampling_params=SamplingParams(temperature=1.0, seed=1))
    drawn = EngineCoreOutput("r", [], kv_transfer_params={THROWN_AWAY: True})
    assert front.streams.sort_out(owner, [_token("r", 7), drawn, drawn])[1:] == []
    front.lose(owner)
    ((_, resume),) = front.resumed
    assert (resume.output_token_ids, resume.thrown_away) == ([7], 2)


def test_finished_request_is_forgotten() -> None:
    front = FrontEnd(A, B)
    owner = front.open()
    front.streams.sort_out(owner, [_token("r", 7, finish_reason=FinishReason.STOP)])
    assert front.streams.session_of("r") is None
    front.lose(owner)
    assert (front.sent, front.emitted) == ([], [])


def test_driven_out_streams_go_on_elsewhere_and_the_rest_stays() -> None:
    front = FrontEnd(A, B)
    homes = {name: front.open(name) for name in ("r", "s")}
    assert set(homes.values()) == {A, B}
    front.streams.sort_out(A, [_token(next(name for name, home in homes.items() if home == A), 7)])
    front.streams.reported(_snapshot(A, seq=2, state=InstanceState.DRAINING))
    assert front.streams.drive_out(A, "it drains") == 1
    assert [to for to, _ in front.resumed] == [B]


def test_it_is_told_of_every_replay_whether_an_instance_was_lost_or_it_was_asked_for() -> None:
    """A drain past its timeout, and an instance that is stopped, are no losses."""
    front = FrontEnd(A, B, C)
    front.streams.drive_out(front.open("driven"), "it drains")
    turned_away = msgspec.structs.replace(_notice(TURNED_AWAY), request_id="turned-away")
    front.streams.sort_out(front.open("turned-away"), [turned_away])
    front.lose(front.open("lost"))
    asked_for = {replay.request: replay.asked_for for replay in front.replays if "~" not in replay.request}
    assert asked_for == {"driven": True, "turned-away": True, "lost": False}


def test_nobody_is_driven_out_without_a_place_to_go() -> None:
    front = FrontEnd(A)
    front.open()
    assert front.streams.drive_out(A, "it drains") == 0
    assert front.streams.session_of("r") is not None


def test_client_may_name_the_slot() -> None:
    front = FrontEnd(A, B)
    assert [front.open(f"r{n}", data_parallel_rank=1) for n in range(4)] == [B] * 4


async def test_instance_that_does_not_hear_the_first_calls_is_called_again() -> None:
    calls = 0

    async def call() -> str:
        nonlocal calls
        calls += 1
        if calls < 3:
            await asyncio.Event().wait()  # lost on the way
        return "here"

    assert await first_answer(call, asyncio.Event()) == "here"
    assert calls == 3


async def test_instance_that_goes_before_it_answers_is_not_called_for_ever() -> None:
    gone = asyncio.Event()

    async def call() -> None:
        gone.set()
        await asyncio.Event().wait()

    with pytest.raises(ConnectionError, match="the instance is gone"):
        await first_answer(call, gone)
    with pytest.raises(ConnectionError, match="the instance is gone"):
        await unless_gone(asyncio.Event().wait(), gone)


def test_gone_instance_does_not_come_back_by_a_late_report() -> None:
    members = FrontEnd(A).members
    members.remove(A)
    assert not members.is_unknown(A)
    assert members.is_unknown(B)


def test_joined_while_there_is_an_instance() -> None:
    front = FrontEnd(A)
    assert front.members.joined.is_set()
    front.lose(A)
    assert not front.members.joined.is_set()


def test_instance_for_prompts_is_told_where_the_request_goes_with_its_first_token() -> None:
    front = FrontEnd(A, B)
    front.streams.reported(_snapshot(A, seq=2, role=Role.PREFILL))
    front.streams.reported(_snapshot(B, seq=2, role=Role.DECODE))
    assert front.open() == A
    ((address, told),) = front.mailed
    assert (address, told.target.id, told.order.request, told.order.is_onward) == ("to a", B, "r", True)


def test_instance_that_is_about_to_go_is_not_named() -> None:
    front = FrontEnd(A, B)
    front.streams.reported(_snapshot(A, seq=2, role=Role.PREFILL))
    front.streams.reported(_snapshot(B, seq=2, role=Role.DECODE))
    front.members.remove(B)
    assert front.open() == A
    assert front.mailed == []


def test_prompt_of_one_that_is_replayed_before_its_first_token_is_told_its_client() -> None:
    front = FrontEnd(A, B)
    first = front.open()
    front.lose(first)
    stats = PrefillStats(num_prompt_tokens=3, num_cached_tokens=2)
    (delivered,) = front.streams.sort_out(_other(first), [_token("r~1", 7, prefill_stats=stats)])
    assert (delivered.request_id, delivered.prefill_stats) == ("r", stats)


def test_stream_whose_embeddings_are_not_kept_ends_and_lets_go_of_them() -> None:
    front = FrontEnd(A)
    front.open(prompt_token_ids=None, prompt_embeds=torch.zeros(3, MOST_MEDIA_BYTES))
    front.streams.sort_out(A, [_token("r", 7)])
    session = front.streams.session_of("r")
    assert session is not None
    assert session.request.prompt_embeds is None
    front.streams.sort_out(A, [_token("r", 8, finish_reason=FinishReason.LENGTH)])
    assert front.streams.sessions == {}
