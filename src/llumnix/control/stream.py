"""One engine request as the front end that streams it knows it."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from llumnix.control.front_end_events import Arrived
from llumnix.control.messages import Moved, Stayed
from llumnix.types import Epoch, InstanceId, RequestId

FIRST = Epoch(0)
"""Of the instance that a request was sent to."""


class Held(msgspec.Struct, frozen=True):
    """Outputs that came before it was clear whether their sender owns the request."""

    outputs: tuple[object, ...]
    tokens: int
    last: bool
    """The request ends with them."""


@dataclass(slots=True)
class Tenure:
    """The request at an instance that adopted it and does not own it, yet or any more."""

    instance: InstanceId
    adopted_tokens: int
    """Output tokens that it came with."""
    waiting: list[Held | Moved | Stayed] = field(default_factory=list)


class Stream(msgspec.Struct, eq=False, gc=False):
    """Mutable: the machine and its driver share it. The hot path of a front end, once per request and engine step, is

    if stream.live == instance:
        stream.delivered_tokens += tokens  # and deliver; if it was the last output: Finished
    else:
        commands = machine.handle(Outputs(…))
    """

    request: RequestId
    owner: InstanceId
    live: InstanceId | None
    """Whose outputs go straight to the client. None until the new owner's tenure has begun in its stream: what it may
    still send of an older one is not for the client. None, too, when no instance goes on with this id."""
    delivered_tokens: int = 0
    """All that the client has, from before a replay, too."""
    epoch: Epoch = FIRST
    """The owner's tenure."""
    decided: Epoch = FIRST
    """Attempts up to this one are over: whoever has the request from one of them and is not the owner is fenced."""
    promised: tuple[Epoch, InstanceId] | None = None
    """A verdict for a target, whose source has not confirmed it in its stream yet."""
    tenures: dict[InstanceId, Epoch] = {}
    """The epoch that each instance's stream is at."""
    contenders: dict[Epoch, Tenure] = {}
    """By attempt, those that adopted and are not decided."""
    asked: Arrived | None = None
    """What to begin anew with; None where only the owner matters."""
    began_with: int = 0
    """Tokens that the client had when it was sent to its first owner: more than none after a replay."""
    replays: int = 0
    fruitless_replays: int = 0
    """The last ones of these, without a token in between, when it began."""

    def contender(self, instance: InstanceId) -> Tenure | None:
        """The undecided tenure that the instance's stream is at."""
        epoch = self.tenures.get(instance)
        tenure = None if epoch is None else self.contenders.get(epoch)
        return tenure if tenure is not None and tenure.instance == instance else None

    @property
    def others(self) -> list[InstanceId]:
        """Who may have the request besides its owner."""
        if self.promised is None and not self.contenders:
            return []
        holders = [tenure.instance for tenure in self.contenders.values()]
        if self.promised is not None:
            holders.append(self.promised[1])
        return sorted({*holders} - {self.owner})
