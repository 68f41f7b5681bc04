"""Tells the llumlet machine what happens to vLLM's engine and what others say; its body carries out what it commands.

Lives on the engine's main thread and runs between steps only; nothing here waits. Twin of sim/instance.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from vllm.v1.request import Request

from llumnix.config import MigrationConfig
from llumnix.control import events
from llumnix.control.body import LlumletLoop
from llumnix.control.homes import Homes
from llumnix.control.llumlet import Llumlet
from llumnix.control.messages import AnyMessage, Verdict
from llumnix.engine.vllm.instance.body import VllmBody
from llumnix.engine.vllm.instance.engine_access import EngineAccess
from llumnix.engine.vllm.instance.snapshot import request_snapshots
from llumnix.errors import IllegalMessage
from llumnix.policy.snapshot import RequestSnapshot
from llumnix.policy.victim import why_not_to_decode
from llumnix.types import Epoch, InstanceId, RequestId, RequestState, Role
from llumnix.wire.addresses import AddressBook
from llumnix.wire.to_instance import MoveOut, Peer, PullEnded

log = logging.getLogger(__name__)


class LlumletDriver:
    """One llumlet on one engine."""

    def __init__(
        self, engine: EngineAccess, llumlet: Llumlet, config: MigrationConfig, book: AddressBook, relief_steps: int = 0
    ) -> None:
        self._body = VllmBody(engine, config, book, relief_steps)
        self._loop = LlumletLoop(llumlet, self._body)
        self._outgoing = self._body.outgoing
        self.incoming = self._body.incoming
        self.info = engine.info
        self.engine_pins = engine.pins
        self.ended = 0
        self._homes = Homes()
        self._scheduler = engine.scheduler
        self._clock = engine.clock
        engine.scheduler.on_begun = self.began

    # -- what happens

    def move_out(self, order: MoveOut) -> None:
        if order.order.is_onward:
            self._body.letters.met(order.target)
            self.began([self._homes.told(order.order)])  # perhaps it was here first
            return
        self._body.new_order(order)
        exact = order.order.wanted.at_least_blocks > 0
        candidates = self._candidates(order.order.request, exact=exact)
        self._loop.hear(events.MoveOrdered(self._clock(), order.order, candidates))

    def began(self, requests: Iterable[str]) -> None:
        """Their prompts are in the step that begins now. For those that go on elsewhere with their first token room is
        asked for there meanwhile."""
        for request in requests:
            if request in self._homes:
                self._begin(RequestId(request))

    def _begin(self, request: RequestId) -> None:
        for here in self._candidates(request, exact=False):
            if here.state is RequestState.WAITING:
                continue
            order = self._homes.begins(self._clock(), here, self.role)
            if order is not None:
                self._loop.hear(order)

    def peer_said(self, peer: Peer, prepared: Request | str | None) -> None:
        """`prepared`: the request that a `Prepare` describes, made (and its grammar compiled) off this thread, or why
        that failed."""
        self._body.letters.met(peer.sender)
        key = peer.message.request, peer.message.epoch
        if prepared is not None:
            self._body.expect(key, prepared)
        self._received(peer.message)
        self._body.forget(key)  # still there when the machine refused without a look at the engine

    def verdict(self, verdict: Verdict) -> None:
        self._received(verdict)
        if not self._loop.llumlet.is_moving(verdict.request):
            self.incoming.confirmed(verdict.request)

    def _received(self, message: AnyMessage) -> None:
        """What others do wrong must not end an instance, with all that runs here."""
        try:
            self._loop.hear(events.Received(at=self._clock(), message=message))
        except IllegalMessage as error:
            log.error("ignored a message that %s cannot have meant: %s", message.sender, error)

    def peer_lost(self, instance: InstanceId) -> None:
        self._body.peer_lost(instance)
        self._homes.lost(instance)
        self._loop.hear(events.PeerLost(at=self._clock(), instance=instance))

    def set_draining(self, draining: bool) -> None:
        now = self._clock()
        self._loop.hear(events.Draining(at=now) if draining else events.Accepting(at=now))

    def pull_ended(self, ended: PullEnded) -> None:
        result = self.incoming.pull_ended(ended)
        if result is None:
            return
        ok, reason, bytes_read = result
        named = (self._clock(), ended.request, Epoch(ended.epoch), ended.stage)
        self._loop.hear(events.Pulled(*named, bytes_read) if ok else events.PullFailed(*named, reason))

    def tick(self) -> None:
        self._loop.hear(events.TimerFired(at=self._clock()))

    def after_step(self) -> None:
        """To be called after every engine step, every abort and whatever was heard: cheap when nothing migrates."""
        self.tell_ends()
        if self.incoming:
            self.incoming.after_step()
        if self._outgoing.watching:
            for event in self._outgoing.progress():
                self._loop.hear(event)
        if self._outgoing.leaving:
            self._report_detached()

    @property
    def role(self) -> Role:
        return self._body.role

    @role.setter
    def role(self, role: Role) -> None:
        self._body.role = role

    @property
    def counters(self) -> dict[str, int]:
        llumlet, body = self._loop.llumlet, self._body
        return {
            "incoming": llumlet.incoming,
            "outgoing": llumlet.outgoing,
            "migrations_in": body.moved_in,
            "migrations_out": body.moved_out,
            "ended": self.ended,
            "preemptions_avoided": body.preemptions_avoided,
            "recompute_tokens_saved": body.recompute_tokens_saved,
            "late_messages": llumlet.late,
        }

    def to_decode(self) -> list[RequestSnapshot]:
        """Those that can leave to make their tokens elsewhere, and are not on the way."""
        return [
            each
            for each in self._candidates(exact=False)
            if not (each.why_pinned or self._loop.llumlet.is_moving(each.id) or why_not_to_decode(each))
        ]

    def _candidates(self, only: RequestId | None = None, *, exact: bool) -> tuple[RequestSnapshot, ...]:
        """See `request_snapshots`; none is movable while nothing leaves this engine."""
        return request_snapshots(self._scheduler, self.engine_pins or self.incoming.closed, only, exact=exact)

    def tell_ends(self) -> None:
        """Before anything else is told: no letter is to speak of a request that is gone."""
        ended, self._scheduler.ended = self._scheduler.ended, []
        self.ended += len(ended)
        for request_id, why in ended:
            self._outgoing.ended(request_id)
            self._homes.forget(request_id)
            self._loop.hear(events.Gone(at=self._clock(), request=request_id, why=why))

    def _report_detached(self) -> None:
        for event in self._outgoing.detached():
            self._loop.hear(event)
