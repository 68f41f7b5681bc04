"""Token replay: an engine takes up a stream with the tokens that its client has."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import msgspec
from vllm.v1.engine import EngineCoreRequest

from llumnix.control import front_end_events as fe
from llumnix.engine.vllm.between import RequestCodec
from llumnix.engine.vllm.front_end.client_access import ClientAccess
from llumnix.engine.vllm.front_end.session import Session
from llumnix.types import InstanceId, RequestId

ENGINE_ENDS = "Server shutting down"
"""What vLLM answers calls with once its engine is told to end (`EngineCoreProc._reject_utility_in_shutdown`)."""


class Resuming:
    def __init__(self, access: ClientAccess, tell: Callable[[fe.FrontEndEvent], None]) -> None:
        """`tell`: the front end's mind, of engines that did not take one up."""
        self._access = access
        self._tell = tell
        self._codec = RequestCodec()

    async def resume(self, session: Session, renamed: EngineCoreRequest, instance: InstanceId) -> None:
        request = RequestId(renamed.request_id)
        try:
            await self._access.resume(instance, msgspec.msgpack.encode(session.as_resume(renamed, self._codec)))
        except ConnectionError:
            return  # that one died, too: `departed` replays the stream once more
        except Exception as error:  # noqa: BLE001 vLLM turns whatever the engine raised into a bare Exception
            if str(error) == ENGINE_ENDS:
                self._tell(fe.TurnedAway(monotonic(), instance, request))
            else:
                self._tell(fe.Broken(monotonic(), request, f"token replay failed: {error}"))
