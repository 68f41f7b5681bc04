"""What the streams of a front end use of the client that they live in, and whom they tell what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from vllm.v1.engine import EngineCoreOutput, EngineCoreRequestType

from llumnix.control.front_end_events import ReplayAt
from llumnix.control.messages import Moved, Stayed
from llumnix.engine.vllm.front_end.given_up import GivenUp
from llumnix.engine.vllm.front_end.session import Session
from llumnix.journal.stories import Stories
from llumnix.types import InstanceId
from llumnix.wire.outbox import Mail

OnEnd = Callable[[Session], None]
"""Told when a stream is over, however it ended."""


class Observer(Protocol):
    """What a front end wants to know of its streams; all calls come on the event loop and must be quick."""

    @property
    def stories(self) -> Stories:
        """Told by the streams themselves."""
        ...

    def replayed(self, replay: ReplayAt) -> None: ...
    def failed(self, session: Session, why: str) -> None: ...
    def stayed(self, session: Session, notice: Stayed) -> None: ...
    def moved(self, session: Session, notice: Moved, downtime_s: float | None, ago_s: float) -> None:
        """`ago_s`: since the first token from the new owner."""
        ...

    def ended(self, session: Session) -> None:
        """Its story has ended, and is to be kept (`Stories.over`)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientAccess:
    """What the streams use of the engine client that they live in."""

    send: Callable[[InstanceId, EngineCoreRequestType, Any], None]
    """To an engine, if it is still there; returns at once."""
    resume: Callable[[InstanceId, bytes], Coroutine[Any, Any, Any]]
    """Has an engine take up a `Resume`. Raises ConnectionError if it is lost meanwhile."""
    post: Callable[[str, Mail], None]
    give_up: Callable[[GivenUp], None]
    """Ends the client's stream, behind what it was sent before."""
    emit: Callable[[list[EngineCoreOutput]], None]
    """For outputs that do not come in a message of an engine."""
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    last_word: Callable[[InstanceId], None]
    """Told when the stream of an instance is over."""
