"""Engines that were told to abort a request, lately: they are told again if they do not."""

from __future__ import annotations

from llumnix.control.front_end_events import Abort
from llumnix.control.latest import Latest
from llumnix.types import InstanceId, RequestId

ABORTS_REMEMBERED = 4096

OUTPUTS_PER_ABORT = 16
"""An engine that still makes tokens of a request which it was told to abort is told again after so many."""


class ToldAborts:
    def __init__(self) -> None:
        self._outputs: Latest[tuple[InstanceId, RequestId], int] = Latest(ABORTS_REMEMBERED)
        """That came since."""

    def tell(self, instance: InstanceId, request: RequestId) -> Abort:
        self._outputs[instance, request] = 0
        return Abort(instance, request)

    def goes_on(self, instance: InstanceId, request: RequestId) -> Abort | None:
        """It still has a request that is over: its front end died, or an abort did not find it."""
        outputs = self._outputs.get((instance, request), OUTPUTS_PER_ABORT) + 1
        if outputs > OUTPUTS_PER_ABORT:
            return self.tell(instance, request)
        self._outputs[instance, request] = outputs  # the last ones are on their way while it is told
        return None
