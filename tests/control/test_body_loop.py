"""The loop between a llumlet and its body: one event at a time, and answers wait their turn."""

from __future__ import annotations

from unittest.mock import Mock, call

import pytest

from llumnix.control import commands as do
from llumnix.control import events as told
from llumnix.control.body import LlumletLoop
from llumnix.errors import IllegalEvent
from llumnix.types import RequestId

REQUEST = RequestId("r")
PROGRESS = told.Progress(1.0, REQUEST, 1, 2, 3, decoding=True)
GONE = told.Gone(2.0, REQUEST, "finished")


def a_loop(*answers: list[do.AnyCommand]) -> tuple[LlumletLoop, Mock]:
    """Its llumlet commands so in turn, and then nothing. What happens is seen in the calls of the mock."""
    seen = Mock()
    seen.llumlet.handle.side_effect = [*answers, *[[]] * 10]
    for name in ("watch", "detach", "install"):
        getattr(seen.body, name).return_value = None
    return LlumletLoop(seen.llumlet, seen.body), seen


def test_answer_is_heard_after_all_commands_of_its_batch() -> None:
    watch, unwatch = do.WatchProgress(REQUEST), do.Unwatch(REQUEST)
    loop, seen = a_loop([watch, unwatch])
    seen.body.watch.return_value = PROGRESS
    loop.hear(GONE)
    assert seen.mock_calls == [
        call.llumlet.handle(GONE),
        call.body.watch(watch),
        call.body.unwatch(unwatch),
        call.llumlet.handle(PROGRESS),
    ]


def test_what_is_heard_while_commands_are_carried_out_waits() -> None:
    unwatch, detach = do.Unwatch(REQUEST), do.Detach(REQUEST)
    loop, seen = a_loop([unwatch, detach])
    seen.body.unwatch.side_effect = lambda _: loop.hear(PROGRESS)
    loop.hear(GONE)
    assert seen.mock_calls == [
        call.llumlet.handle(GONE),
        call.body.unwatch(unwatch),
        call.body.detach(detach),
        call.llumlet.handle(PROGRESS),
    ]


def test_event_that_is_illegal_is_told_and_the_loop_goes_on_with_the_next() -> None:
    loop, seen = a_loop()
    seen.llumlet.handle.side_effect = [IllegalEvent("no"), []]
    with pytest.raises(IllegalEvent):
        loop.hear(GONE)
    loop.hear(PROGRESS)
    assert seen.llumlet.handle.mock_calls == [call(GONE), call(PROGRESS)]
