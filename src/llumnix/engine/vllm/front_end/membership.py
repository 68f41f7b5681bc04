"""How an instance becomes a member of a front end's engines, is heard as long as it speaks, and leaves them.

Three ways lead there, and each may be late: its load reports, the news of its end, and its token stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic

import msgspec
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.metrics.stats import SchedulerStats

from llumnix.control.hearing import Hearing
from llumnix.engine.vllm.between import Introduction
from llumnix.engine.vllm.front_end.client_access import ClientAccess
from llumnix.engine.vllm.front_end.clocks import Clocks
from llumnix.engine.vllm.front_end.members import Member, first_answer
from llumnix.engine.vllm.front_end.shared_state import SharedState
from llumnix.engine.vllm.front_end.streams import Streams
from llumnix.types import InstanceId
from llumnix.wire.news import InstanceGone, Report

_LAST_WORD_TIMEOUT_S = 2.0
"""How long the stream of an instance that ended as it was asked to is read for its last word. A killed one has none."""


class Membership:
    """Keeps the members (`shared_state.members`), vLLM's own list of engines, and what the streams know of instances.
    All methods run on the front end's event loop."""

    def __init__(
        self, client: AsyncMPClient, streams: Streams, shared_state: SharedState, access: ClientAccess, clocks: Clocks
    ) -> None:
        self.on_more_slots: Callable[[int], None] = lambda slots: None
        """Told when there are more slots than ever before."""
        self._client = client
        self._members = shared_state.members
        self._streams = streams
        self._shared_state = shared_state
        self._access = access
        self._clocks = clocks
        self._hearing: Hearing[list[EngineCoreOutput]] = Hearing()

    # -- it comes

    def reported(self, report: Report) -> None:
        """A load report; the first one of an instance starts the acquaintance."""
        instance = report.info.id
        member = self._members.known.get(instance)
        if member is None and not self._members.is_unknown(instance):
            return
        self._clocks.heard(instance, report.snapshot.at, monotonic())
        if member is not None:
            member.hear(report.snapshot)
            if instance in self._members.by_id:
                self._streams.reported(report.snapshot)
        else:
            member = self._members.call(report)
            self._make_room_for(report.info.slot)
            self._introduce(report.info.index, instance)
            self._access.spawn(self._court(member))

    def _make_room_for(self, slot: int) -> None:
        """vLLM's metrics need a place for whoever is heard."""
        if slot >= len(self._client.engine_ranks_managed):
            self._client.engine_ranks_managed = list(range(slot + 1))
            self.on_more_slots(slot + 1)

    def _introduce(self, index: int, instance: InstanceId) -> None:
        for outputs in self._hearing.introduced(index, instance):
            self._clocks.put_events_right(instance, outputs)
            self._access.emit(self._streams.sort_out(instance, outputs))

    async def _court(self, member: Member) -> None:
        """Calls the instance on vLLM's sockets until it answers: only then does it take requests."""
        try:
            call = AsyncMPClient._call_utility_async  # our client's own calls only whom it may send requests
            called = partial(call, self._client, "llumnix_hello", engine=member.identity)
            hello = msgspec.msgpack.decode(await first_answer(called, member.gone), type=Introduction)
            self._client._apply_ready_response(hello.ready)
            await self._shared_state.bring(member)
        except ConnectionError:
            return
        if not member.gone.is_set():
            self.admit(member, hello)

    def admit(self, member: Member, hello: Introduction) -> None:
        """It has answered, and takes requests from now on."""
        self._members.admit(member)
        self._streams.seeds_lost = hello.seeds_lost
        self._client.core_engines.append(member.identity)
        self._client.core_engine = self._client.core_engines[0]
        self._streams.reported(hello.snapshot)  # the first one: what it counts, an earlier front end sent
        self._streams.reported(member.snapshot)

    # -- it speaks

    def says(self, message: EngineCoreOutputs) -> InstanceId | None:
        """Who says this, in a message of which times and place are put right for vLLM; None: it does not count (any
        more), or is kept until it is known who says it."""
        instance = self._hearing.says(message.engine_index, message.outputs)
        member = None if instance is None else self._members.known.get(instance)
        if member is None:
            message.scheduler_stats = None
        message.engine_index = 0 if member is None else member.info.slot
        if instance is not None:
            self._clocks.put_right(instance, message, monotonic())
        return instance

    # -- it leaves

    def ended(self, gone: InstanceGone) -> None:
        """It takes no more requests, and what it owned goes on elsewhere: at once if it was lost, else after its last
        word, which may still have to be read."""
        instance = gone.instance
        self._introduce(gone.index, instance)
        known = self._members.known.get(instance)
        member = self._members.remove(instance)
        if member is not None:
            self._client.core_engines.remove(member.identity)
            if self._client.core_engines:
                self._client.core_engine = self._client.core_engines[0]
        if known is not None:
            self._vacate(known.info.slot)
        self._streams.closed(instance)
        if self._hearing.ended(instance, gone.expected):
            self._bury(instance)
        else:
            asyncio.get_running_loop().call_later(_LAST_WORD_TIMEOUT_S, self._bury, instance)

    def _vacate(self, slot: int) -> None:
        """What vLLM knows by the slot of an instance that ended, unless a successor has that by now."""
        if all(member.info.slot != slot for member in self._members.known.values()):
            self._client._kv_event_sources.pop(slot, None)
            nothing = EngineCoreOutputs(engine_index=slot, scheduler_stats=SchedulerStats())
            self._client.outputs_queue.put_nowait(nothing)

    def last_word(self, instance: InstanceId) -> None:
        """Its stream is over."""
        if self._hearing.last_word(instance):
            self._bury(instance)

    def _bury(self, instance: InstanceId) -> None:
        self._streams.departed(instance, complete=self._hearing.gone(instance))
        self._clocks.forget(instance)
