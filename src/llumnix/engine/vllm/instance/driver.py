"""Carries out what the llumlet machine commands, on vLLM's scheduler and workers, and tells it what happened.

Lives on the engine's main thread and runs between steps only; nothing here waits. Twin of sim/driver.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from vllm.v1.request import Request

from llumnix.config import MigrationConfig
from llumnix.control import commands, events
from llumnix.control.llumlet import Llumlet
from llumnix.control.orders import MoveId
from llumnix.engine.vllm.instance.engine_access import EngineAccess
from llumnix.engine.vllm.instance.incoming import IncomingRequests, Refusal
from llumnix.engine.vllm.instance.letters import Letters
from llumnix.engine.vllm.instance.outgoing import OutgoingRequests
from llumnix.engine.vllm.instance.snapshot import growth_blocks, request_snapshots
from llumnix.engine.vllm.instance.state import decode_hand, passport_of
from llumnix.policy.relief import short_blocks
from llumnix.types import Epoch, InstanceId, RequestId
from llumnix.wire import messages as wire
from llumnix.wire.addresses import AddressBook

_MAX_ORDERS_REMEMBERED = 1024


class LlumletDriver:
    """One llumlet on one engine."""

    def __init__(
        self, engine: EngineAccess, llumlet: Llumlet, config: MigrationConfig, book: AddressBook, relief_steps: int = 0
    ) -> None:
        scheduler = engine.scheduler
        self.info = engine.info
        self.engine_pins = engine.pins
        self.incoming = IncomingRequests(
            scheduler, engine.structured_output, engine.rpc, engine.ranks, engine.has_adapter
        )
        self._outgoing = outgoing = OutgoingRequests(scheduler, engine.clock)
        self._letters = Letters(engine, book)
        self.moved_in = 0
        self.moved_out = 0
        self.ended = 0
        self.preemptions_avoided = 0
        self.recompute_tokens_saved = 0
        self._relief_steps = relief_steps
        self._config = config
        self._llumlet = llumlet
        self._scheduler = scheduler
        self._post_soon = engine.post_soon
        self._clock = engine.clock
        self._prepared: dict[tuple[RequestId, int], Request] = {}
        self._asked_by: dict[MoveId, str] = {}
        """Who gave an order: where its answer goes."""
        self._events: deque[events.AnyEvent] = deque()
        self._handling = False
        self._handlers: dict[type[commands.AnyCommand], Callable[[Any], None]] = {
            commands.Send: self._letters.send,
            commands.SendToFrontEnd: self._letters.send_to_front_end,
            commands.Notify: self._letters.notify,
            commands.WatchProgress: self._watch,
            commands.Unwatch: lambda command: outgoing.unwatch(command.request),
            commands.PinBlocks: lambda pin: outgoing.pin(pin.request, pin.epoch, pin.first_block, pin.blocks),
            commands.UnpinBlocks: lambda command: outgoing.unpin(command.request, command.epoch),
            commands.Detach: lambda command: outgoing.detach(command.request),
            commands.Reattach: lambda command: outgoing.reattach(command.request),
            commands.Release: lambda command: outgoing.release(command.request),
            commands.Reserve: self._reserve,
            commands.Pull: self._pull,
            commands.Install: self._install,
            commands.Drop: self._drop,
            commands.AnswerMove: self._answer_move,
            commands.WakeAt: lambda command: engine.wake_at(command.at),
        }

    # -- what happens

    def move_out(self, order: wire.MoveOut) -> None:
        self._letters.met(order.target)
        self._asked_by[order.order.move_id] = order.reply_to
        if len(self._asked_by) > _MAX_ORDERS_REMEMBERED:
            del self._asked_by[next(iter(self._asked_by))]
        exact = order.order.wanted.at_least_blocks > 0
        candidates = request_snapshots(self._scheduler, bool(self.engine_pins), order.order.request, exact=exact)
        self.handle(events.MoveOut(self._clock(), order.order, candidates))

    def peer_said(self, peer: wire.Peer, prepared: Request | None) -> None:
        """`prepared`: the request that a `Prepare` describes, made (and its grammar compiled) off this thread."""
        self._letters.met(peer.sender)
        if prepared is not None:
            self._prepared[RequestId(prepared.request_id), peer.message.epoch] = prepared
        self.handle(events.Received(at=self._clock(), message=peer.message))
        if prepared is not None:
            # Still there when the machine refused without a look at the engine.
            self._prepared.pop((RequestId(prepared.request_id), peer.message.epoch), None)

    def verdict(self, arbitration: wire.Arbitration) -> None:
        self.handle(events.Received(at=self._clock(), message=arbitration.message))

    def peer_lost(self, instance: InstanceId) -> None:
        self._letters.lost(instance)
        self.handle(events.PeerLost(at=self._clock(), instance=instance))

    def set_draining(self, draining: bool) -> None:
        now = self._clock()
        self.handle(events.Draining(at=now) if draining else events.Accepting(at=now))

    def pull_ended(self, ended: wire.PullEnded) -> None:
        result = self.incoming.pull_ended(ended)
        if result is None:
            return
        ok, reason, bytes_read = result
        named = (self._clock(), ended.request, Epoch(ended.epoch), ended.stage)
        self.handle(events.Pulled(*named, bytes_read) if ok else events.PullFailed(*named, reason))

    def tick(self) -> None:
        self.handle(events.TimerFired(at=self._clock()))

    def after_step(self) -> None:
        """To be called after every engine step and after every abort: cheap when nothing migrates."""
        if self._scheduler.ended:
            self._report_ends()
        if self.incoming:
            self.incoming.after_step()
        if self._outgoing.watching:
            for event in self._outgoing.progress():
                self.handle(event)
        if self._outgoing.leaving:
            self._report_detached()

    def handle(self, event: events.AnyEvent) -> None:
        """Feeds the machine, and carries its commands out before it sees the next event."""
        self._events.append(event)
        if self._handling:
            return  # a command's answer: the loop below, further up the stack, takes it up
        self._handling = True
        try:
            while self._events:
                for command in self._llumlet.handle(self._events.popleft()):
                    self._handlers[type(command)](command)
                if self._outgoing.leaving and not self._events:
                    self._report_detached()
        finally:
            self._handling = False

    @property
    def counters(self) -> dict[str, int]:
        return {
            "incoming": self._llumlet.incoming,
            "outgoing": self._llumlet.outgoing,
            "migrations_in": self.moved_in,
            "migrations_out": self.moved_out,
            "ended": self.ended,
            "preemptions_avoided": self.preemptions_avoided,
            "recompute_tokens_saved": self.recompute_tokens_saved,
        }

    def _report_ends(self) -> None:
        ended, self._scheduler.ended = self._scheduler.ended, []
        self.ended += len(ended)
        for request_id, why in ended:
            self._outgoing.ended(request_id)
            self.handle(events.Gone(at=self._clock(), request=request_id, why=why))

    def _report_detached(self) -> None:
        for event in self._outgoing.detached():
            self.handle(event)

    # -- answers

    def _answer_move(self, command: commands.AnswerMove) -> None:
        outcome = command.outcome
        if outcome.ok:
            self.moved_out += 1
            if outcome.order.wanted.urgent:
                self._count_relief(outcome.figures.held_blocks)
        elif outcome.request is not None and (kept := self._scheduler.requests.get(outcome.request)) is not None:
            passport_of(kept).moved_s = self._clock()  # or the same one would be tried again and again
        asked_by = self._asked_by.get(outcome.order.move_id)
        if asked_by is not None:
            self._post_soon((asked_by,), wire.MoveAnswer(outcome=outcome))

    def _count_relief(self, blocks: int) -> None:
        """A request has just left so that none is preempted. Had its blocks stayed taken, would one have been?"""
        scheduler = self._scheduler
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        if short_blocks(growth_blocks(scheduler, self._relief_steps), free - blocks):
            self.preemptions_avoided += 1
            self.recompute_tokens_saved += blocks * scheduler.block_size

    # -- commands

    def _watch(self, command: commands.WatchProgress) -> None:
        self._events.append(self._outgoing.watch(command.request))

    def _reserve(self, command: commands.Reserve) -> None:
        key = (command.request, command.epoch)
        now = self._clock()
        try:
            skip_blocks = self.incoming.reserve(key, self._prepared.pop(key), command.blocks)
        except Refusal as refusal:
            self._events.append(events.ReserveFailed(now, command.request, command.epoch, str(refusal)))
        else:
            self._events.append(events.Reserved(now, command.request, command.epoch, skip_blocks))

    def _pull(self, command: commands.Pull) -> None:
        key = (command.request, command.epoch)
        sender = self._letters.peer(command.message.sender)
        try:
            if sender is None:
                raise Refusal(f"{command.message.sender} is gone")
            addresses = msgspec.json.decode(sender.data, type=list[str])
            busy = self.incoming.pull(key, command.message, addresses, self._config.stage_timeout_s)
        except Refusal as refusal:
            self._events.append(events.PullFailed(self._clock(), *key, command.stage, str(refusal)))
        else:
            if not busy:
                self._events.append(events.Pulled(self._clock(), *key, command.stage, 0))

    def _install(self, command: commands.Install) -> None:
        key = (command.request, command.epoch)
        now = self._clock()
        try:
            tokens = self.incoming.install(key, decode_hand(command.message.payload), now)
        except Refusal as refusal:
            self._events.append(events.InstallFailed(now, *key, str(refusal)))
        else:
            self.moved_in += 1
            self._events.append(events.Installed(now, *key, tokens))

    def _drop(self, command: commands.Drop) -> None:
        self.incoming.drop((command.request, command.epoch))
