"""What a llumlet says to others, with what only its engine knows put in: block ids, requests, sampler states."""

from __future__ import annotations

from typing import assert_never

import msgspec
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

from llumnix.control import commands
from llumnix.control.gone import GoneIds
from llumnix.control.messages import (
    AnyMessage,
    Cancel,
    Commit,
    Committed,
    Copied,
    Copy,
    Doubt,
    Prepare,
    Prepared,
    Refused,
    Verdict,
)
from llumnix.engine.vllm.between import NOTICE, RequestCodec
from llumnix.engine.vllm.instance.engine_access import EngineAccess
from llumnix.engine.vllm.instance.seeds import has_generator
from llumnix.engine.vllm.instance.state import hand_of, identity_of
from llumnix.types import InstanceId
from llumnix.wire.addresses import AddressBook
from llumnix.wire.base import Frame, InstanceInfo
from llumnix.wire.to_instance import Peer


class Letters:
    """Called on the engine's main thread only."""

    def __init__(self, engine: EngineAccess, book: AddressBook) -> None:
        self._peers: dict[InstanceId, InstanceInfo] = {}
        self._gone = GoneIds()
        self._engine = engine
        self._book = book
        self._codec = RequestCodec()

    def met(self, peer: InstanceInfo) -> None:
        """It wrote to us, or we are to write to it. What comes from one that is gone was on its way for long."""
        if peer.id not in self._gone:
            self._peers[peer.id] = peer

    def peer(self, instance: InstanceId) -> InstanceInfo | None:
        """How to reach it; None if it is gone, or we never met."""
        return self._peers.get(instance)

    def lost(self, instance: InstanceId) -> None:
        """It will never read again."""
        self._gone.add(instance)
        peer = self._peers.pop(instance, None)
        if peer is not None:
            self._engine.forget(peer.control)

    def send(self, command: commands.Send) -> None:
        """To the other end of a migration."""
        peer = self._peers.get(command.to)
        if peer is None:
            return  # lost meanwhile; the machine has been, or will be, told by PeerLost
        message, freight = self._filled_in(command.message)
        letter = Peer(sender=self._engine.info, message=message)
        if freight:
            self._engine.ship(peer.control, letter, freight)
        elif isinstance(message, Commit | Committed):  # the stream stands still until they arrive
            self._engine.post(peer.control, letter)
        else:
            self._engine.post_soon((peer.control,), letter)

    def _filled_in(self, message: AnyMessage) -> tuple[AnyMessage, list[Frame]]:
        """With its freight."""
        scheduler = self._engine.scheduler
        match message:
            case Prepare():
                payload, freight = identity_of(
                    scheduler.requests[message.request], self._codec, scheduler.max_model_len
                )
                return msgspec.structs.replace(message, payload=payload), freight
            case Copy():
                return msgspec.structs.replace(message, block_ids=self._block_ids(message)), []
            case Commit():
                request = scheduler.requests[message.request]
                # Of a pipeline's workers only those of the last stage draw; of a stage, all alike.
                drawn = has_generator(request.sampling_params) and not scheduler.use_v2_model_runner
                state = self._engine.workers.ask("llumnix_sampler_state", message.request)[-1] if drawn else None
                states = scheduler.tables.states.after(message.request, request.num_computed_tokens)
                block_ids = (*self._block_ids(message), *(block.block_id for block in states))
                return msgspec.structs.replace(message, block_ids=block_ids, payload=hand_of(request, state)), []
            case Cancel() | Prepared() | Copied() | Committed() | Refused() | Doubt() | Verdict():
                return message, []
            case _:
                assert_never(message)

    def _block_ids(self, message: Copy | Commit) -> tuple[int, ...]:
        return tuple(self._engine.scheduler.tables.ids(message.request, message.first_block, message.blocks))

    def send_to_front_end(self, command: commands.SendToFrontEnd) -> None:
        request = self._engine.scheduler.requests[command.request]
        self._engine.post(self._book.front_end(request.client_index), command.message)

    def notify(self, command: commands.Notify) -> None:
        """In the token stream: after all earlier tokens of the request here, and before all later ones."""
        request = self._engine.scheduler.requests.get(command.request)
        if request is None:
            return  # it ended: its last output said so to the front end, and nobody waits for the notice
        output = EngineCoreOutput(
            request_id=command.request,
            new_token_ids=[],
            kv_transfer_params={NOTICE: msgspec.msgpack.encode(command.message)},
        )
        self._engine.put_output((request.client_index, EngineCoreOutputs(outputs=[output])))
