"""The stories of a front end's streams: one entry for each thing that happens, and times that are the engine's."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Any

import msgspec
import pytest

pytest.importorskip("vllm")

import test_long_run_of_streams as long_run
from engine_requests import engine_request
from test_streams import A, B, FrontEnd, _other, _token
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, FinishReason
from vllm.v1.metrics.stats import PrefillStats

from llumnix.control.front_end_events import ReplayAt
from llumnix.control.messages import Adopted, Moved, Stayed
from llumnix.engine.vllm.front_end import streams as module
from llumnix.journal.entries import DispatchNoted, FirstTokenNoted, MoveNoted, RefusalNoted, ReplayNoted, StayNoted
from llumnix.journal.story import RequestStory
from llumnix.types import Epoch, InstanceId
from move_outcomes import outcome

SCHEDULED, PREEMPTED = EngineCoreEventType.SCHEDULED, EngineCoreEventType.PREEMPTED


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The front end's: whoever wants another time writes it there."""
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


def told(front: FrontEnd, request: str = "r") -> RequestStory:
    (story,) = front.stories.tell(request, time.monotonic()).stories
    return story


def kinds(story: RequestStory) -> list[str]:
    return [entry.kind for entry in story.entries]


def events(*said: tuple[EngineCoreEventType, float]) -> list[EngineCoreEvent]:
    return [EngineCoreEvent.new_event(kind, at_s) for kind, at_s in said]


def say(front: FrontEnd, instance: InstanceId, what: Any) -> None:
    front.streams.sort_out(instance, [long_run.notice(what.request, what)] if not isinstance(what, list) else what)


def move(front: FrontEnd, source: InstanceId, target: InstanceId, tokens: int, why_not: str | None = None) -> None:
    header: dict[str, Any] = {"request": "r", "epoch": Epoch(1 if why_not else 2)}
    ended = outcome(source, target, why_not=why_not)
    if why_not is None:
        say(front, target, Adopted(**header, sender=target, source=source, output_tokens=tokens))
        say(front, source, Moved(**header, sender=source, outcome=ended))
    else:
        say(front, source, Stayed(**header, sender=source, outcome=ended))


def test_a_request_that_was_preempted_spent_its_time_as_the_engine_says(clock: list[float]) -> None:
    front = FrontEnd(A)
    front.open("r", arrival_time=time.time())
    clock[0] = 103.0
    first = _token("r", 7, events=events((SCHEDULED, 101.0)), prefill_stats=PrefillStats(num_cached_tokens=64))
    front.streams.sort_out(A, [first])
    clock[0] = 110.0
    again = _token("r", 8, events=events((PREEMPTED, 105.0), (SCHEDULED, 108.0)), finish_reason=FinishReason.LENGTH)
    front.streams.sort_out(A, [again])
    story = told(front)
    assert kinds(story) == ["dispatch", "first_token", "preempted", "ended"]
    spent = msgspec.structs.asdict(story.spent)
    assert spent == pytest.approx(
        {"placing_s": spent["placing_s"], "queue_s": 1.0, "prefill_s": 2.0, "decode_s": 2.0, "preempted_s": 5.0}
        | {"moving_s": 0.0, "replay_s": 0.0}
    )
    token = story.entries[1].what
    assert isinstance(token, FirstTokenNoted)
    assert token.cached_tokens == 64


def test_a_request_that_moved_once_and_stayed_once_and_ended(clock: list[float]) -> None:
    front = long_run.Arbiter(A, B)
    first = front.open("r", arrival_time=time.time())
    for now in (101.0, 102.0, 103.0):
        clock[0] = now
        front.streams.sort_out(first, [_token("r", 7)])
    move(front, first, _other(first), 3, why_not="the target has no room")
    move(front, first, _other(first), 3)
    clock[0] = 106.0
    front.streams.sort_out(_other(first), [_token("r", 8)])
    clock[0] = 107.0
    front.streams.sort_out(_other(first), [_token("r", 9, finish_reason=FinishReason.STOP)])
    story = told(front)
    assert kinds(story) == ["dispatch", "first_token", "stayed", "moved", "ended"]
    dispatch, _, stayed, moved, ended = story.entries
    assert isinstance(dispatch.what, DispatchNoted)
    assert (dispatch.instance, len(dispatch.what.reason.candidates)) == (first, 2)
    assert isinstance(stayed.what, StayNoted)
    assert (stayed.instance, stayed.what.target, stayed.why) == (first, _other(first), "the target has no room")
    assert isinstance(moved.what, MoveNoted)
    assert (moved.instance, moved.what.target) == (first, _other(first))
    assert moved.what.downtime_ms == pytest.approx(2000.0)
    assert ended.instance == _other(first)
    assert story.spent.moving_s == pytest.approx(2.0)
    assert story.spent.total_s == pytest.approx(story.latency_s) == pytest.approx(107.0 - 100.0, abs=0.01)


def test_a_request_whose_instance_dies_waits_and_is_replayed(clock: list[float]) -> None:
    front = FrontEnd(A)
    front.open("r", arrival_time=time.time())
    clock[0] = 101.0
    front.streams.sort_out(A, [_token("r", 7)])
    clock[0] = 105.0
    front.lose(A)
    clock[0] = 106.0
    front.join(B)
    clock[0] = 108.0
    front.streams.sort_out(B, [_token("r~1", 8)])
    story = told(front)
    assert kinds(story) == ["dispatch", "first_token", "parked", "replayed"]
    replay = story.entries[-1]
    assert isinstance(replay.what, ReplayNoted)
    assert (replay.instance, replay.what.delivered_tokens, replay.what.reason.chosen) == (B, 1, B)
    assert story.spent.replay_s == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("end", "outcome", "why"),
    [
        (lambda front: front.streams.abort("r"), "abort", ""),
        (lambda front: front.streams.unsent("r"), "error", "it could not be sent"),
        (lambda front: say(front, A, [_token("r", 7, finish_reason=FinishReason.REPETITION)]), "repetition", ""),
    ],
)
def test_how_a_request_can_end(end: Any, outcome: str, why: str) -> None:
    front = FrontEnd(A)
    front.open("r", arrival_time=time.time())
    end(front)
    last = told(front).entries[-1]
    assert (last.kind, last.what.outcome, last.why) == ("ended", outcome, why)  # type: ignore[union-attr]
    assert told(front).ended


def test_a_request_that_is_given_up_says_why() -> None:
    front = FrontEnd(A)
    front.open("r", arrival_time=time.time(), resumable=True)
    front.streams.sort_out(A, [_token("r", 7)])
    front.lose(A)
    last = told(front).entries[-1]
    assert (last.kind, last.what.outcome) == ("ended", "error")  # type: ignore[union-attr]
    assert "cannot be continued exactly" in last.why


def test_a_request_that_nobody_takes_is_refused_once() -> None:
    front = FrontEnd()
    front.streams.open(engine_request("cmpl-1-0", external_req_id="cmpl-1-0"))
    (entry,) = front.stories.journal.newest(9).entries
    assert (entry.request, entry.what, entry.why) == (
        "cmpl-1",
        RefusalNoted(503),
        "No instance can take the request now.",
    )


def test_ids_are_those_that_clients_know() -> None:
    front = FrontEnd(A)
    front.streams.open(engine_request("0_cmpl-1-0-7f3a", external_req_id="0_cmpl-1-0"))
    (story,) = front.stories.tell("cmpl-1", 0.0).stories
    assert story.sequence == "0_cmpl-1-0-7f3a"


def test_in_a_long_life_every_dispatch_move_replay_and_end_has_exactly_one_entry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Streams that move, are replayed, aborted and end, while instances come and go."""
    monkeypatch.setattr(long_run, "Arbiter", Counting)
    life = long_run.Life(seed=3)
    front = life.front
    assert isinstance(front, Counting)
    entries: Counter[str] = Counter()
    front.stories.journal.listener = lambda entry: entries.update([entry.kind])
    waiting: deque[str] = deque()
    for number in range(60):
        life.come_and_go(number)
        for name in [waiting.popleft() for _ in range(5 if number > 5 else 0)]:  # its instance may be gone since
            life.go_on(name)
        for place in range(5):
            life.stream(f"r{number}-{place}")
            waiting.append(f"r{number}-{place}")
    assert entries["dispatch"] == 300
    assert entries["ended"] == 300 - len(waiting)
    assert {kind: entries[kind] for kind in ("moved", "replayed")} == dict(front.counted)
    assert min(front.counted.values()) > 5, "of everything there is some"


class Counting(long_run.Arbiter):
    """What the streams told besides."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def replayed(self, replay: ReplayAt) -> None:
        self.counted["replayed"] += 1

    def moved(self, session: object, notice: object, downtime_s: float | None, ago_s: float) -> None:
        self.counted["moved"] += 1
