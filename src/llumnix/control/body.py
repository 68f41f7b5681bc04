"""What the body of a llumlet can do, and the one loop that drives it.

A body is an engine and its lines to the world: vLLM's, a simulated one, a tiny one in tests. What each command means,
and what must follow, is told in control/commands.py; all bodies pass the same suite (tests/body_contract.py).
"""

from __future__ import annotations

from collections import deque
from typing import Protocol, assert_never

from llumnix.control import commands as do
from llumnix.control import events as told
from llumnix.control.llumlet import Llumlet


class LlumletBody(Protocol):
    """One method for each command. What a method returns is the command's answer; where None may be returned in its
    place, the answer comes later by `LlumletLoop.hear`."""

    def send(self, command: do.Send) -> None: ...
    def send_to_front_end(self, command: do.SendToFrontEnd) -> None: ...
    def notify(self, command: do.Notify) -> None: ...
    def answer_move(self, command: do.AnswerMove) -> None: ...
    def wake_at(self, command: do.WakeAt) -> None: ...

    # at the source
    def watch(self, command: do.WatchProgress) -> told.Progress | None: ...
    def unwatch(self, command: do.Unwatch) -> None: ...
    def pin(self, command: do.PinBlocks) -> None: ...
    def unpin(self, command: do.UnpinBlocks) -> None: ...
    def detach(self, command: do.Detach) -> told.Detached | None: ...
    def reattach(self, command: do.Reattach) -> None: ...
    def release(self, command: do.Release) -> None: ...

    # at the target
    def reserve(self, command: do.Reserve) -> told.Reserved | told.ReserveFailed: ...
    def pull(self, command: do.Pull) -> told.Pulled | told.PullFailed | None: ...
    def install(self, command: do.Install) -> told.Installed | told.InstallFailed | None: ...
    def drop(self, command: do.Drop) -> None: ...


class LlumletLoop:
    """Hands events to a llumlet, one at a time, and its commands to its body."""

    def __init__(self, llumlet: Llumlet, body: LlumletBody) -> None:
        self.llumlet = llumlet
        self._body = body
        self._events: deque[told.AnyEvent] = deque()
        self._busy = False

    def hear(self, event: told.AnyEvent) -> None:
        """All commands of one event are carried out before the next event is looked at: what is heard meanwhile waits,
        answers included. Raises IllegalEvent (`Llumlet.handle`)."""
        self._events.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._events:
                for command in self.llumlet.handle(self._events.popleft()):
                    answer = carry_out(self._body, command)
                    if answer is not None:
                        self._events.append(answer)
        finally:
            self._busy = False


def carry_out(body: LlumletBody, command: do.AnyCommand) -> told.AnyEvent | None:  # noqa: C901 (one line per command)
    """Returns the answer, if it is there at once."""
    match command:
        case do.Send():
            body.send(command)
        case do.SendToFrontEnd():
            body.send_to_front_end(command)
        case do.Notify():
            body.notify(command)
        case do.AnswerMove():
            body.answer_move(command)
        case do.WakeAt():
            body.wake_at(command)
        case do.WatchProgress():
            return body.watch(command)
        case do.Unwatch():
            body.unwatch(command)
        case do.PinBlocks():
            body.pin(command)
        case do.UnpinBlocks():
            body.unpin(command)
        case do.Detach():
            return body.detach(command)
        case do.Reattach():
            body.reattach(command)
        case do.Release():
            body.release(command)
        case do.Reserve():
            return body.reserve(command)
        case do.Pull():
            return body.pull(command)
        case do.Install():
            return body.install(command)
        case do.Drop():
            body.drop(command)
        case _:
            assert_never(command)
    return None
