"""The clocks of instances on other machines, as this front end's own reads them.

vLLM tells how long a token took by the engine's clock (vllm/v1/metrics/stats.py), which is one for all of a request.
Here it moves between machines, whose monotonic clocks are days apart: so all times are put on ours before vLLM, or the
request's story, sees them.
"""

from __future__ import annotations

from math import inf

import msgspec
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

from llumnix.types import InstanceId

_DRIFT = 1e-4
"""Seconds a second that two clocks may run apart."""


class _Clock(msgspec.Struct):
    behind_s: float = inf
    """Ours less its own, with the shortest way that a message has had lately."""
    heard_s: float = 0.0


class Clocks:
    def __init__(self, *, one_machine: bool) -> None:
        """`one_machine`: there all processes have the same clock, and nothing is changed."""
        self._one_machine = one_machine
        self._clocks: dict[InstanceId, _Clock] = {}

    def heard(self, instance: InstanceId, said_at_s: float, now: float) -> None:
        """Now, what it said then by its clock."""
        if not self._one_machine:
            clock = self._clocks.setdefault(instance, _Clock())
            clock.behind_s = min(now - said_at_s, clock.behind_s + _DRIFT * (now - clock.heard_s))
            clock.heard_s = now

    def put_right(self, instance: InstanceId, message: EngineCoreOutputs, now: float) -> None:
        """A message that has just come."""
        self.heard(instance, message.timestamp, now)
        if (clock := self._clocks.get(instance)) is not None:
            message.timestamp += clock.behind_s
        self.put_events_right(instance, message.outputs)

    def put_events_right(self, instance: InstanceId, outputs: list[EngineCoreOutput]) -> None:
        if (clock := self._clocks.get(instance)) is None:
            return
        for output in outputs:
            for event in output.events or ():
                event.timestamp += clock.behind_s

    def forget(self, instance: InstanceId) -> None:
        """It says nothing more."""
        self._clocks.pop(instance, None)
