"""The body of a llumlet: carries its commands out on vLLM's scheduler and workers.

Lives on the engine's main thread and runs between steps only; nothing here waits. Twin of sim/body.py.
"""

from __future__ import annotations

import contextlib

import msgspec
from vllm.v1.request import Request

from llumnix.config import MigrationConfig
from llumnix.control import commands, events
from llumnix.control.homes import FOR_PROMPTS
from llumnix.control.latest import Latest
from llumnix.control.messages import Commit
from llumnix.control.orders import MoveId
from llumnix.engine.vllm.instance.early_pulls import NoAdapter, Origin, Refusal
from llumnix.engine.vllm.instance.engine_access import EngineAccess
from llumnix.engine.vllm.instance.growth import growth_blocks
from llumnix.engine.vllm.instance.incoming import IncomingRequests
from llumnix.engine.vllm.instance.letters import Letters
from llumnix.engine.vllm.instance.outgoing import OutgoingRequests
from llumnix.engine.vllm.instance.state import Hand, decode_hand, passport_of
from llumnix.policy.relief import short_blocks
from llumnix.types import Epoch, InstanceId, RequestId, Role
from llumnix.wire.addresses import AddressBook
from llumnix.wire.base import InstanceInfo
from llumnix.wire.to_instance import MoveOut
from llumnix.wire.to_scheduler import MoveAnswer
from llumnix.wire.to_worker import ForgetPeer

_ORDERS_REMEMBERED = 1024


class VllmBody:
    """What is told later (pulls that end, progress, requests that have left) is told by the driver."""

    def __init__(self, engine: EngineAccess, config: MigrationConfig, book: AddressBook, relief_steps: int) -> None:
        scheduler = engine.scheduler
        self.letters = Letters(engine, book)
        self.outgoing = OutgoingRequests(scheduler, engine.clock)
        self.incoming = IncomingRequests(scheduler, engine.structured_output, engine.workers, engine.has_adapter)
        self.role = Role.MIXED
        self.moved_in = 0
        self.moved_out = 0
        self.preemptions_avoided = 0
        self.recompute_tokens_saved = 0
        self._engine = engine
        self._scheduler = scheduler
        self._clock = engine.clock
        self._config = config
        self._relief_steps = relief_steps
        self._prepared: dict[tuple[RequestId, Epoch], Request | str] = {}
        self._asked_by: Latest[MoveId, str] = Latest(_ORDERS_REMEMBERED)
        """Who gave an order: where its answer goes."""

    # -- from the driver

    def new_order(self, order: MoveOut) -> None:
        """Who gave it is remembered, for the answer."""
        self.letters.met(order.target)
        self._asked_by[order.order.move_id] = order.reply_to

    def expect(self, attempt: tuple[RequestId, Epoch], prepared: Request | str) -> None:
        """What a `Prepare` describes, or why it cannot be made here: a `Reserve` may follow."""
        self._prepared[attempt] = prepared

    def forget(self, attempt: tuple[RequestId, Epoch]) -> None:
        """No `Reserve` will follow (any more)."""
        self._prepared.pop(attempt, None)

    # -- talk

    def send(self, command: commands.Send) -> None:
        self.letters.send(command)

    def send_to_front_end(self, command: commands.SendToFrontEnd) -> None:
        self.letters.send_to_front_end(command)

    def notify(self, command: commands.Notify) -> None:
        self.letters.notify(command)

    def answer_move(self, command: commands.AnswerMove) -> None:
        outcome = command.outcome
        if outcome.ok:
            self.moved_out += 1
            if outcome.order.wanted.urgent:
                self._count_relief(outcome.figures.held_blocks)
        elif outcome.request is not None and (kept := self._scheduler.requests.get(outcome.request)) is not None:
            passport_of(kept).moved_s = self._clock()  # or the same one would be tried again and again
        asked_by = self._asked_by.get(outcome.order.move_id)
        if asked_by is not None:
            self._engine.post_soon((asked_by,), MoveAnswer(outcome=outcome))

    def _count_relief(self, blocks: int) -> None:
        """A request has just left so that none is preempted. Had its blocks stayed taken, would one have been?"""
        scheduler = self._scheduler
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        tokens = (blocks - scheduler.tables.state_blocks) * scheduler.block_tokens
        growth = growth_blocks(scheduler.running, scheduler.counts, self._relief_steps)
        if short_blocks(growth, free - scheduler.counts.to_hold(tokens)):
            self.preemptions_avoided += 1
            self.recompute_tokens_saved += tokens

    def wake_at(self, command: commands.WakeAt) -> None:
        self._engine.wake_at(command.at)

    # -- at the source

    def watch(self, command: commands.WatchProgress) -> events.Progress:
        return self.outgoing.watch(command.request)

    def unwatch(self, command: commands.Unwatch) -> None:
        self.outgoing.unwatch(command.request)

    def pin(self, command: commands.PinBlocks) -> None:
        self.outgoing.pin(command.request, command.epoch, command.first_block, command.blocks)

    def unpin(self, command: commands.UnpinBlocks) -> None:
        self.outgoing.unpin(command.request, command.epoch)

    def detach(self, command: commands.Detach) -> None:
        self.outgoing.detach(command.request)

    def reattach(self, command: commands.Reattach) -> None:
        self.outgoing.reattach(command.request)

    def release(self, command: commands.Release) -> None:
        self.outgoing.release(command.request)

    def peer_lost(self, instance: InstanceId) -> None:
        """It will never read again, and is not read again."""
        peer = self.letters.peer(instance)
        self.letters.lost(instance)
        if peer is not None:
            with contextlib.suppress(Refusal):
                addresses = _addresses(peer)
                if len(addresses) == self._engine.workers.count:
                    self._engine.workers.order(ForgetPeer(addresses=tuple(addresses)))

    # -- at the target

    def reserve(self, command: commands.Reserve) -> events.Reserved | events.ReserveFailed:
        key, now = (command.request, command.epoch), self._clock()
        try:
            prepared = self._prepared.pop(key)
            if isinstance(prepared, str):
                raise Refusal(prepared)
            if self.role is Role.PREFILL and command.message.to_decode:
                raise Refusal(FOR_PROMPTS)
            origin = self._origin(command.message.sender)
            skip_blocks = self.incoming.reserve(key, prepared, command.blocks, origin)
        except Refusal as refusal:
            return events.ReserveFailed(now, *key, str(refusal), isinstance(refusal, NoAdapter))
        return events.Reserved(now, *key, skip_blocks)

    def _origin(self, instance: InstanceId) -> Origin:
        """Raises Refusal."""
        peer = self.letters.peer(instance)
        if peer is None:
            raise Refusal(f"{instance} is gone")
        return Origin(instance, tuple(_addresses(peer)), self._config.stage_timeout_s)

    def pull(self, command: commands.Pull) -> events.Pulled | events.PullFailed | None:
        key = (command.request, command.epoch)
        try:
            busy = self.incoming.pull(key, command.message)
        except Refusal as refusal:
            return events.PullFailed(self._clock(), *key, command.stage, str(refusal))
        return None if busy else events.Pulled(self._clock(), *key, command.stage, 0)

    def install(self, command: commands.Install) -> events.Installed | events.InstallFailed:
        key, now = (command.request, command.epoch), self._clock()
        try:
            tokens = self.incoming.install(key, _hand(command.message), now)
        except Refusal as refusal:
            return events.InstallFailed(now, *key, str(refusal))
        self.moved_in += 1
        return events.Installed(now, *key, tokens)

    def drop(self, command: commands.Drop) -> None:
        self.incoming.drop((command.request, command.epoch))


def _addresses(peer: InstanceInfo) -> list[str]:
    """Of its workers' transports. Raises Refusal."""
    try:
        return msgspec.json.decode(peer.data, type=list[str])
    except ValueError as error:
        raise Refusal(f"where the blocks of {peer.id} are cannot be read: {error}") from error


def _hand(commit: Commit) -> Hand:
    """Raises Refusal."""
    try:
        return decode_hand(commit.payload)
    except ValueError as error:
        raise Refusal(f"its state cannot be read: {error}") from error
