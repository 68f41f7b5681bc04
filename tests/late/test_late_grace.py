"""An engine waits for a moment with its next step where only the last blocks keep a request from running in it."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from late_device import BLOCKS
from late_engine import LateCore
from late_pair import LatePair, Session

from llumnix.engine.vllm.instance import core as core_module
from llumnix.engine.vllm.instance.office import CONTROL

GRACE_S = 0.02
SHORT_S = GRACE_S / 4


class Mail:
    """An input queue into which something comes from time to time, by a clock that goes on while somebody waits."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.coming: deque[tuple[float, Callable[[], Any]]] = deque()
        """After how long, and what."""

    def get(self, timeout: float) -> tuple[Any, Any]:
        waits_s, message = self.coming.popleft() if self.coming else (timeout, lambda: None)
        self.now_s += min(waits_s, timeout)
        if waits_s >= timeout:
            raise queue.Empty
        return CONTROL, message()


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[LatePair, LateCore, Mail]]:
    """An engine to which the last blocks of a request are on their way, just before its next step."""
    pair = LatePair()
    session = pair.ask(0, list(range(20)), 30)
    core, mail = pair.cores[1], Mail()
    until_last_blocks_come(pair, session)
    read, core.input_queue = core.input_queue, mail  # type: ignore[assignment]
    monkeypatch.setattr(core_module, "monotonic", lambda: mail.now_s)
    monkeypatch.setattr(core, "_spec", SimpleNamespace(migration=SimpleNamespace(last_blocks_grace_s=GRACE_S)))
    yield pair, core, mail
    core.input_queue = read
    pair.settle()
    assert (pair.moved, len(session.tokens)) == (1, 30)
    assert (pair.wrong, pair.leftovers) == ([], [])


def until_last_blocks_come(pair: LatePair, session: Session) -> None:
    while pair.cores[0].scheduler.requests[session.engine_id].num_output_tokens < 2:
        pair.step(0)
    pair.move(0, session.engine_id)
    incoming = pair.cores[1].office.driver.incoming
    for _ in range(100):
        if incoming.awaits_last_blocks:
            return
        pair.copy(BLOCKS)
        pair.turn_but_for_pulls()
    raise AssertionError("no last blocks")


def test_it_waits_no_longer_whatever_else_comes_meanwhile(waiting: tuple[LatePair, LateCore, Mail]) -> None:
    _, core, mail = waiting
    heard: list[str] = []
    mail.coming.extend((SHORT_S, lambda: partial(heard.append, "something else")) for _ in range(9))
    core._await_last_blocks()
    assert mail.now_s == pytest.approx(100.0 + GRACE_S)
    assert len(heard) in (3, 4)


def test_it_goes_on_as_soon_as_they_are_there(waiting: tuple[LatePair, LateCore, Mail]) -> None:
    pair, core, mail = waiting

    def end() -> Any:
        """Of the pull."""
        pair.copy(BLOCKS)
        _, letter = pair.wires.letters.pop()
        return letter

    mail.coming.append((SHORT_S, end))
    core._await_last_blocks()
    assert mail.now_s == pytest.approx(100.0 + SHORT_S)
    assert core.scheduler.kv_holding_waiting, "it runs in the step that follows"


def test_nobody_waits_where_none_come(waiting: tuple[LatePair, LateCore, Mail]) -> None:
    pair, _, mail = waiting
    pair.cores[0]._await_last_blocks()
    assert mail.now_s == 100.0
