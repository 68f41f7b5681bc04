"""Moves of streams whose new owner is heard before the old one says that it gave the request away."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytest.importorskip("vllm")

import test_long_run_of_streams as long_run
from test_streams import A, B, _other, _token
from vllm.v1.engine import FinishReason

from llumnix.control.messages import Adopted, Moved
from llumnix.engine.vllm.front_end import moves_told
from llumnix.engine.vllm.front_end import streams as module
from llumnix.engine.vllm.front_end.session import Session
from llumnix.types import Epoch, InstanceId
from move_outcomes import outcome


class FrontEnd(long_run.Arbiter):
    """With one stream or more, that have said two tokens at 101 and 102 s and then moved."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__(A, B)
        self.clock = clock
        self.told: list[tuple[InstanceId, float | None]] = []
        self.over: list[str] = []
        self.ago_s = 0.0
        self.owners: dict[str, InstanceId] = {}

    def moved(self, session: Session, notice: Moved, downtime_s: float | None, ago_s: float) -> None:
        self.told.append((notice.target, downtime_s))
        self.ago_s = ago_s

    def ended(self, session: Session) -> None:
        super().ended(session)
        self.over.append(session.id)

    def begin(self, request: str, tokens: int = 2) -> None:
        source = self.owners[request] = self.open(request, arrival_time=time.time())
        for second in range(tokens):
            self.clock[0] = 101.0 + second
            self.streams.sort_out(source, [_token(request, 7)])
        self.adopted(request, source, tokens)

    def adopted(self, request: str, source: InstanceId, tokens: int, epoch: int = 1) -> None:
        target = _other(source)
        header: dict[str, Any] = {"request": request, "epoch": Epoch(epoch), "sender": target}
        notice = Adopted(**header, source=source, output_tokens=tokens)
        self.streams.sort_out(target, [long_run.notice(request, notice)])

    def word(self, request: str, epoch: int = 1, back: bool = False) -> None:
        """The old owner's."""
        source = _other(self.owners[request]) if back else self.owners[request]
        ended = outcome(source, _other(source))
        header: dict[str, Any] = {"request": request, "epoch": Epoch(epoch), "sender": source}
        self.streams.sort_out(source, [long_run.notice(request, Moved(**header, outcome=ended))])

    def says(self, at_s: float, request: str = "r", **fields: Any) -> int:
        """A token of the new owner; how many reach the client."""
        self.clock[0] = at_s
        return len(self.streams.sort_out(_other(self.owners[request]), [_token(request, 8, **fields)]))

    def kinds(self, request: str = "r") -> list[str]:
        (story,) = self.stories.tell(request, self.clock[0]).stories
        return [entry.kind for entry in story.entries]


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> FrontEnd:
    clock = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    return FrontEnd(clock)


def test_client_waits_for_no_word_of_the_old_owner_and_the_move_is_told_with_it(front: FrontEnd) -> None:
    front.begin("r")
    assert front.says(104.0) == 1
    assert front.says(105.0) == 1
    assert front.told == []
    front.word("r")
    ((target, downtime_s),) = front.told
    assert target == _other(front.owners["r"])
    assert downtime_s == pytest.approx(1.0)  # two seconds less a step of one
    assert front.ago_s == pytest.approx(1.0)
    assert front.says(106.0, finish_reason=FinishReason.LENGTH) == 1
    assert front.kinds() == ["dispatch", "first_token", "moved", "ended"]
    assert len(front.told) == 1


def test_stream_that_is_over_before_the_word_ends_its_story_with_it(front: FrontEnd) -> None:
    front.begin("r")
    assert front.says(104.0, finish_reason=FinishReason.STOP) == 1
    assert front.streams.sessions == {}
    assert (front.told, front.over) == ([], [])
    front.word("r")
    assert [downtime_s for _, downtime_s in front.told] == [pytest.approx(1.0)]
    assert front.over == ["r"]
    assert front.kinds() == ["dispatch", "first_token", "moved", "ended"]
    (story,) = front.stories.tell("r", 0.0).stories
    assert story.spent.total_s == pytest.approx(story.latency_s) == pytest.approx(4.0, abs=0.01)


def test_old_owner_that_dies_says_nothing_and_nobody_waits(front: FrontEnd) -> None:
    front.begin("over")
    front.says(104.0, "over", finish_reason=FinishReason.STOP)
    front.begin("r")
    front.says(104.0)
    for source in {front.owners["r"], front.owners["over"]}:
        front.lose(source)
    assert front.over == ["over"]
    front.streams.abort("r")
    assert set(front.over) == {"over", "r"}
    assert front.told == []


def test_word_before_the_first_token_is_told_with_that(front: FrontEnd) -> None:
    front.begin("r")
    front.word("r")
    assert front.told == []
    front.says(104.0)
    assert [downtime_s for _, downtime_s in front.told] == [pytest.approx(1.0)]


def test_move_of_a_request_that_has_said_nothing_has_no_downtime(front: FrontEnd) -> None:
    front.begin("r", tokens=0)
    front.says(104.0)
    front.word("r")
    front.says(105.0)
    assert [downtime_s for _, downtime_s in front.told] == [None]


def test_there_and_back_before_a_word_is_read(front: FrontEnd) -> None:
    front.begin("r")
    front.says(104.0)
    front.adopted("r", _other(front.owners["r"]), 3, epoch=2)
    front.clock[0] = 107.0
    assert len(front.streams.sort_out(front.owners["r"], [_token("r", 9)])) == 1
    front.word("r", epoch=2, back=True)
    front.word("r", epoch=1)
    assert front.kinds() == ["dispatch", "first_token", "moved", "moved"]
    assert [target for target, _ in front.told] == [front.owners["r"], _other(front.owners["r"])]


def test_few_streams_that_are_over_wait_for_a_word(front: FrontEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves_told, "MOST_ENDED", 3)
    for number in range(5):
        front.begin(f"r{number}")
        front.says(104.0, f"r{number}", finish_reason=FinishReason.STOP)
    assert front.over == ["r0", "r1"]
