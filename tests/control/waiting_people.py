"""Waiting rooms for tests, before a cluster that takes as many as it is told to."""

from __future__ import annotations

from dataclasses import dataclass, field

from llumnix.control.front_end_events import Arrived
from llumnix.control.openings import Opening
from llumnix.control.waiting_room import Ask, Called, GaveUp, WaitingRoom
from llumnix.policy.classes import Classes, Declined
from llumnix.types import RequestId


@dataclass
class People:
    """Who asks a room. `free`: requests that the instances would still begin."""

    classes: Classes
    free: int = 0
    foreseen_s: float | None = None
    """Until a first token, per 1,000 prompt tokens before it and its own."""
    now_s: float = 0.0
    outputs: dict[RequestId, int] = field(default_factory=dict)
    asked: dict[RequestId, Ask] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.room = WaitingRoom(self.classes, self.now_s)

    def look(self, asked: Arrived, ahead_tokens: float) -> Opening:
        foreseen_s = None if self.foreseen_s is None else self.foreseen_s * (asked.prompt_tokens + ahead_tokens) / 1000
        return Opening(self.free > 0, foreseen_s)

    def ask(self, name: str, who: str = "t", cls: str = "c", prompt: int = 100, output: int = 100) -> Declined | None:
        """`output`: the most that it may make, and what it makes."""
        ask = Ask(Arrived(self.now_s, RequestId(name), prompt), who, cls, output)
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
