"""Waiting rooms for tests, before a cluster that takes as many as it is told to."""

from __future__ import annotations

from dataclasses import dataclass, field

from llumnix.control.front_end_events import Arrived
from llumnix.control.openings import Opening
from llumnix.control.waiting_room import Ask, Called, GaveUp, WaitingRoom
from llumnix.policy.classes import Classes, Declined
from llumnix.types import InstanceId, RequestId


@dataclass
class People:
    """Who asks a room. `free`: requests that the instances would still begin."""

    classes: Classes
    free: int = 0
    free_there: bool = False
    """Those that name an instance could begin as well."""
    foreseen_s: float | None = None
    """Until a first token, per 1,000 prompt tokens before it and its own."""
    now_s: float = 0.0
    outputs: dict[RequestId, int] = field(default_factory=dict)
    asked: dict[RequestId, Ask] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.room = WaitingRoom(self.classes, self.now_s)

    def look(self, asked: Arrived, ahead_tokens: float) -> Opening:
        foreseen_s = None if self.foreseen_s is None else self.foreseen_s * (asked.prompt_tokens + ahead_tokens) / 1000
        busy = asked.only_on is not None and not self.free_there
        where = InstanceId("i0") if asked.only_on is None else asked.only_on[0]
        return Opening(self.free > 0 and not busy, foreseen_s, where, is_particular=asked.only_on is not None)

    def ask(
        self, name: str, who: str = "t", cls: str = "c", prompt: int = 100, output: int = 100, only_on: str = ""
    ) -> Declined | None:
        """`output`: the most that it may make, and what it makes."""
        there = (InstanceId(only_on),) if only_on else None
        ask = Ask(Arrived(self.now_s, RequestId(name), prompt, only_on=there), who, cls, output)
        answer = self.room.ask(self.now_s, ask, self)
        if answer is None:
            self.outputs[RequestId(name)], self.asked[RequestId(name)] = output, ask
        return answer

    def calls(self, free: int = 0) -> list[str]:
        """Names of those who are called when so many more places are free; with `!` those who gave up."""
        self.free += free
        names = []
        while (answer := self.room.call(self.now_s, self)) is not None:
            match answer:
                case Called():
                    self.free -= 1
                    names.append(str(answer.request))
                case GaveUp():
                    names.append(f"{answer.request}!")
        return names

    def end(self, *names: str) -> None:
        for name in names:
            self.room.ended(RequestId(name), self.outputs.pop(RequestId(name)))
