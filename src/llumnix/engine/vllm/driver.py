"""Carries out what the llumlet machine commands, on vLLM's scheduler and workers, and tells it what happened.

Lives on the engine's main thread and runs between steps only; nothing here waits. Twin of sim/driver.py.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import Request

from llumnix.config import MigrationConfig
from llumnix.control import commands, events
from llumnix.control.llumlet import Llumlet
from llumnix.control.messages import Commit, Committed, Copy, Prepare
from llumnix.engine.vllm.incoming import CollectiveRpc, IncomingRequests, Refusal
from llumnix.engine.vllm.scheduler import MigrationSupport
from llumnix.engine.vllm.snapshot import growth_blocks, request_snapshots
from llumnix.engine.vllm.state import Codec, decode_hand, hand_of
from llumnix.policy.relief import short_blocks
from llumnix.types import Epoch, InstanceId, RequestId
from llumnix.wire import messages as wire
from llumnix.wire.addresses import AddressBook

NOTICE = "llumnix"
"""Key of a notice in `EngineCoreOutput.kv_transfer_params`: a free-form field that vLLM passes through."""

_MAX_ORDERS_REMEMBERED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What the driver uses of the engine core that it lives in."""

    info: wire.InstanceInfo
    scheduler: MigrationSupport
    structured_output: Any
    rpc: CollectiveRpc
    ranks: int
    """Workers (tensor parallel)."""
    pins: str
    """Why no request of this engine can move; empty if they can."""
    post: Callable[[str, wire.Wire], None]
    post_soon: Callable[[Sequence[str], wire.Wire], None]
    """For messages that nobody stands still for."""
    put_output: Callable[[tuple[int, EngineCoreOutputs]], None]
    """vLLM's output queue: what is put there leaves after all earlier tokens and before all later ones."""
    wake_at: Callable[[float], None]
    """Asks for a `tick` at that time."""
    clock: Callable[[], float]


class LlumletDriver:
    """One llumlet on one engine."""

    def __init__(
        self, engine: Engine, llumlet: Llumlet, config: MigrationConfig, book: AddressBook, relief_steps: int = 0
    ) -> None:
        scheduler = engine.scheduler
        self.info = engine.info
        self.engine_pins = engine.pins
        self.incoming = IncomingRequests(scheduler, engine.structured_output, engine.rpc, engine.ranks)
        self.moved_in = 0
        self.moved_out = 0
        self.ended = 0
        self.preemptions_avoided = 0
        self.recompute_tokens_saved = 0
        self._relief_steps = relief_steps
        self._book = book
        self._config = config
        self._llumlet = llumlet
        self._scheduler = scheduler
        self._rpc = engine.rpc
        self._post = engine.post
        self._post_soon = engine.post_soon
        self._put_output = engine.put_output
        self._clock = engine.clock
        self._codec = Codec()
        self._peers: dict[InstanceId, wire.InstanceInfo] = {}
        self._prepared: dict[tuple[RequestId, int], Request] = {}
        self._watched: dict[RequestId, int] = {}  # preemptions when the watch began
        self._leaving: set[RequestId] = set()  # detached, steps still in flight
        self._pins: dict[tuple[RequestId, int], list[KVCacheBlock]] = {}
        self._orders: dict[events.MoveId, wire.MoveOut] = {}
        self._order_numbers = itertools.count(1)
        self._events: deque[events.AnyEvent] = deque()
        self._handling = False
        self._handlers: dict[type[commands.AnyCommand], Callable[[Any], None]] = {
            commands.Send: self._send,
            commands.SendToFrontEnd: self._send_to_front_end,
            commands.Notify: self._notify,
            commands.WatchProgress: self._watch,
            commands.Unwatch: self._unwatch,
            commands.PinBlocks: self._pin,
            commands.UnpinBlocks: self._unpin,
            commands.Detach: self._detach,
            commands.Reattach: self._reattach,
            commands.Release: self._release,
            commands.Reserve: self._reserve,
            commands.Pull: self._pull,
            commands.Install: self._install,
            commands.Drop: self._drop,
            commands.AnswerMove: self._answer_move,
            commands.WakeAt: lambda command: engine.wake_at(command.at),
        }

    # -- what happens

    def move_out(self, order: wire.MoveOut) -> None:
        self._peers[order.target.id] = order.target
        move_id = events.MoveId(next(self._order_numbers))
        self._orders[move_id] = order
        if len(self._orders) > _MAX_ORDERS_REMEMBERED:
            del self._orders[next(iter(self._orders))]
        room = self._scheduler.kv_cache_manager.block_pool.num_gpu_blocks
        self.handle(
            events.MoveOut(
                at=self._clock(),
                move_id=move_id,
                target=order.target.id,
                request=order.request,
                reason=order.reason,
                candidates=request_snapshots(self._scheduler, bool(self.engine_pins), order.request),
                room_blocks=room if order.room_blocks is None else order.room_blocks,
                count=order.count,
                urgent=order.urgent,
                at_least_blocks=order.at_least_blocks,
            )
        )

    def peer_said(self, peer: wire.Peer, prepared: Request | None) -> None:
        """`prepared`: the request that a `Prepare` describes, made (and its grammar compiled) off this thread."""
        self._peers[peer.sender.id] = peer.sender
        if prepared is not None:
            self._prepared[RequestId(prepared.request_id), peer.message.epoch] = prepared
        self.handle(events.Received(at=self._clock(), message=peer.message))
        if prepared is not None:
            # Still there when the machine refused without a look at the engine.
            self._prepared.pop((RequestId(prepared.request_id), peer.message.epoch), None)

    def verdict(self, arbitration: wire.Arbitration) -> None:
        self.handle(events.Received(at=self._clock(), message=arbitration.message))

    def peer_lost(self, instance: InstanceId) -> None:
        self._peers.pop(instance, None)
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
        if self._watched:
            self._report_progress()
        if self._leaving:
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
                if self._leaving and not self._events:
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

    # -- progress of requests that are to leave

    def _report_ends(self) -> None:
        ended, self._scheduler.ended = self._scheduler.ended, []
        self.ended += len(ended)
        for request_id, why in ended:
            self._watched.pop(request_id, None)
            self._leaving.discard(request_id)
            self.handle(events.Gone(at=self._clock(), request=request_id, why=why))

    def _report_progress(self) -> None:
        for request_id, preemptions in list(self._watched.items()):
            request = self._scheduler.requests.get(request_id)
            if request is None or request_id in self._leaving:
                continue
            if request.num_preemptions > preemptions:
                self._watched[request_id] = request.num_preemptions
                self.handle(events.Preempted(at=self._clock(), request=request_id))
            elif request_id in self._watched:
                self.handle(self._progress(request))

    def _progress(self, request: Request) -> events.Progress:
        queued = self._scheduler.is_queued(request)
        return events.Progress(
            at=self._clock(),
            request=RequestId(request.request_id),
            settled_blocks=self._scheduler.settled_tokens(request) // self._scheduler.block_size,
            total_blocks=self._scheduler.blocks_for(request.num_computed_tokens),
            output_tokens=request.num_output_tokens,
            decoding=not queued and request.num_output_tokens > 0 and not request.is_prefill_chunk,
            queued=queued and request.num_computed_tokens == 0,
        )

    def _report_detached(self) -> None:
        for request_id in sorted(self._leaving):
            request = self._scheduler.requests.get(request_id)
            # Handling one event looks for further ones, so a later one of this list may be reported already.
            if request_id in self._leaving and request is not None and request.num_in_flight_tokens == 0:
                self._leaving.discard(request_id)
                self.handle(
                    events.Detached(
                        at=self._clock(),
                        request=request_id,
                        total_blocks=self._scheduler.blocks_for(request.num_computed_tokens),
                        output_tokens=request.num_output_tokens,
                    )
                )

    # -- talk

    def _send(self, command: commands.Send) -> None:
        peer = self._peers.get(command.to)
        message = command.message
        request = self._scheduler.requests.get(message.request)
        if peer is None:
            return  # lost meanwhile; the machine has been, or will be, told by PeerLost
        if isinstance(message, Prepare):
            assert request is not None
            message = msgspec.structs.replace(message, payload=self._codec.identity(request))
        elif isinstance(message, Copy | Commit):
            assert request is not None
            ids = self._scheduler.block_ids(message.request, message.first_block, message.blocks)
            message = msgspec.structs.replace(message, block_ids=tuple(ids))
            if isinstance(message, Commit):
                state = self._rpc("llumnix_sampler_state", args=(message.request,))[0]
                message = msgspec.structs.replace(message, payload=hand_of(request, state))
        letter = wire.Peer(sender=self.info, message=message)
        if isinstance(message, Commit | Committed):  # the stream stands still until they arrive
            self._post(peer.control, letter)
        else:
            self._post_soon((peer.control,), letter)

    def _send_to_front_end(self, command: commands.SendToFrontEnd) -> None:
        request = self._scheduler.requests[command.request]
        self._post(self._book.front_end(request.client_index), wire.Arbitration(message=command.message))

    def _notify(self, command: commands.Notify) -> None:
        request = self._scheduler.requests.get(command.request)
        if request is None:
            return  # it ended: its last output said so to the front end, and nobody waits for the notice
        self.put_notice(request.client_index, command.request, command.message)

    def put_notice(self, front_end: int, request_id: str, message: Any) -> None:
        output = EngineCoreOutput(
            request_id=request_id,
            new_token_ids=[],
            kv_transfer_params={NOTICE: msgspec.msgpack.encode(message)},
        )
        self._put_output((front_end, EngineCoreOutputs(outputs=[output])))

    def _answer_move(self, command: commands.AnswerMove) -> None:
        figures = command.figures
        if command.ok:
            self.moved_out += 1
        order = self._orders.get(command.move_id)
        if order is None:
            return
        if command.ok and order.urgent:
            self._count_relief(figures.held_blocks)
        self._post_soon(
            (order.reply_to,),
            wire.MoveAnswer(
                move_id=order.move_id,
                source=self.info.id,
                target=command.target,
                ok=command.ok,
                reason=command.reason,
                request=command.request,
                stages=figures.stages,
                bytes_copied=figures.bytes_copied,
                blocks_skipped=figures.blocks_skipped,
                copy_s=figures.copy_s,
                handover_s=figures.handover_s,
            ),
        )

    def _count_relief(self, blocks: int) -> None:
        """A request has just left so that none is preempted. Had its blocks stayed taken, would one have been?"""
        scheduler = self._scheduler
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        if short_blocks(growth_blocks(scheduler, self._relief_steps), free - blocks):
            self.preemptions_avoided += 1
            self.recompute_tokens_saved += blocks * scheduler.block_size

    # -- the source's engine

    def _watch(self, command: commands.WatchProgress) -> None:
        request = self._scheduler.requests[command.request]
        self._watched[command.request] = request.num_preemptions
        self._events.append(self._progress(request))  # where it stands, also if no step follows soon

    def _unwatch(self, command: commands.Unwatch) -> None:
        self._watched.pop(command.request, None)

    def _pin(self, command: commands.PinBlocks) -> None:
        held = self._scheduler.pin(command.request, command.first_block, command.blocks)
        self._pins.setdefault((command.request, command.epoch), []).extend(held)

    def _unpin(self, command: commands.UnpinBlocks) -> None:
        self._scheduler.unpin(self._pins.pop((command.request, command.epoch), []))

    def _detach(self, command: commands.Detach) -> None:
        self._scheduler.lend(self._scheduler.requests[command.request])
        self._leaving.add(command.request)

    def _reattach(self, command: commands.Reattach) -> None:
        self._leaving.discard(command.request)
        request = self._scheduler.requests.get(command.request)
        if request is not None:
            self._scheduler.take_back(request)

    def _release(self, command: commands.Release) -> None:
        self._leaving.discard(command.request)
        self._scheduler.release(command.request)

    # -- the target's engine

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
        sender = self._peers.get(command.message.sender)
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
