"""What migrations do to one simulated engine: pins, hand-overs, reservations, copies, arrivals.

Carries out the commands of a llumlet that concern requests and blocks, and tells it how that ended.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from llumnix.control import commands as do
from llumnix.control import events as told
from llumnix.sim.engine.engine import Engine
from llumnix.sim.engine.request import DETACHED, NEW, WAITING, Handover, SimRequest
from llumnix.sim.world import World
from llumnix.types import Epoch, RequestId

if TYPE_CHECKING:
    from llumnix.sim.instance import SimInstance


class _Incoming:
    """A reservation for one attempt."""

    __slots__ = ("blocks", "dropped", "epoch", "pulling")

    def __init__(self, epoch: Epoch, blocks: int) -> None:
        self.epoch = epoch
        self.blocks = blocks
        self.pulling = False
        self.dropped = False


class MigrationBody:
    """The hands of one llumlet on its engine. `hear` takes the events."""

    def __init__(self, instance: SimInstance, engine: Engine, world: World, hear: Callable[[Any], None]) -> None:
        self._instance = instance
        self._engine = engine
        self._world = world
        self._kernel = world.kernel
        self._hear = hear
        self._leaving: set[RequestId] = set()
        self._kept: dict[RequestId, tuple[int, int]] = {}
        self._pins: dict[tuple[RequestId, Epoch], int] = {}
        self._limbo: dict[tuple[RequestId, Epoch], int] = {}
        self._incoming: dict[RequestId, _Incoming] = {}
        self.commands: dict[type, Callable[[Any], None]] = {
            do.PinBlocks: self._pin,
            do.UnpinBlocks: self._unpin,
            do.Detach: self._detach,
            do.Reattach: self._reattach,
            do.Release: self._release,
            do.Reserve: self._reserve,
            do.Pull: self._pull,
            do.Install: self._install,
            do.Drop: self._drop,
        }
        """How each kind of command is carried out."""

    @property
    def reserved_blocks(self) -> int:
        """Taken for requests that are on their way in."""
        return sum(incoming.blocks for incoming in self._incoming.values())

    def is_leaving(self, request: RequestId) -> bool:
        """It was asked out of the batch and is still in it."""
        return request in self._leaving

    def detach_at_boundary(self, request: SimRequest) -> None:
        """Takes it out of the batch when no step is in flight."""
        self._engine.at_boundary(partial(self._try_detach, request))

    def crash(self) -> list[SimRequest]:
        """The process is gone: the requests that were out of the batch, on their way out."""
        lost = []
        for kept in self._kept:
            request = self._world.request(kept)
            if request.state is DETACHED:
                request.state = NEW
                lost.append(request)
        return lost

    def _pin(self, command: do.PinBlocks) -> None:
        key = (command.request, command.epoch)
        self._pins[key] = self._pins.get(key, 0) + command.blocks

    def _unpin(self, command: do.UnpinBlocks) -> None:
        key = (command.request, command.epoch)
        self._pins.pop(key, None)
        blocks = self._limbo.pop(key, 0)
        if blocks:
            self._engine.give_back(blocks)

    def ended(self, request: SimRequest) -> None:
        """It finished or was aborted here."""
        self._leaving.discard(RequestId(request.id))
        self.put_in_limbo(request)

    def put_in_limbo(self, request: SimRequest) -> None:
        """The request's blocks were freed; those that are being read stay taken until they are unpinned."""
        for key, blocks in self._pins.items():
            if key[0] == request.id and key not in self._limbo:
                self._engine.pool.take(blocks)
                self._limbo[key] = blocks

    def _detach(self, command: do.Detach) -> None:
        self._leaving.add(command.request)
        self._engine.watched.add(command.request)
        request = self._world.request(command.request)
        if request.state is WAITING:
            self._try_detach(request)
        else:
            self.detach_at_boundary(request)

    def _try_detach(self, request: SimRequest) -> None:
        name = RequestId(request.id)
        if name not in self._leaving:
            return
        if self._engine.detach(request):
            self._kept[name] = (request.blocks, request.cached_units)
            request.blocks = request.cached_units = 0
        elif self._engine.withdraw(request):
            self._kept[name] = (0, 0)
        else:
            return  # it is being computed: its first token will bring us here again
        request.left_s = self._kernel.now
        self._leaving.discard(name)
        self._engine.watched.discard(name)
        self._hear(told.Detached(self._kernel.now, name, self._kept[name][0], request.generated))

    def _reattach(self, command: do.Reattach) -> None:
        self._leaving.discard(command.request)
        self._engine.watched.discard(command.request)
        kept = self._kept.pop(command.request, None)
        request = self._world.request(command.request)
        if kept is None or request.state is not DETACHED:
            return
        request.blocks, request.cached_units = kept
        if request.blocks:
            self._engine.at_boundary(partial(self._engine.attach, request))
        else:
            self._engine.add(request)

    def _release(self, command: do.Release) -> None:
        kept = self._kept.pop(command.request, None)
        request = self._world.request(command.request)
        if kept is not None:
            self._engine.release(*kept, request.hashes)
        elif request.instances and request.instances[-1] == self._instance.id:
            self._engine.abort(request)

    def _reserve(self, command: do.Reserve) -> None:
        name, epoch, now = command.request, command.epoch, self._kernel.now
        limits = self._engine.profile.scheduler
        if name in self._incoming or name in self._kept:
            self._hear(told.ReserveFailed(now, name, epoch, "it has this request already"))
        elif self._engine.running + len(self._incoming) >= limits.max_num_seqs:
            self._hear(told.ReserveFailed(now, name, epoch, "its batch is full"))
        elif command.blocks and not self._engine.reserve(command.blocks):
            self._hear(told.ReserveFailed(now, name, epoch, "not enough free blocks"))
        else:
            self._incoming[name] = _Incoming(epoch, command.blocks)
            self._hear(told.Reserved(now, name, epoch, 0))

    def _pull(self, command: do.Pull) -> None:
        incoming = self._incoming[command.request]
        message = command.message
        more = message.first_block + message.blocks - incoming.blocks
        failed: str | None = None
        if more > 0:
            if self._engine.reserve(more):
                incoming.blocks += more
            else:
                failed = "not enough free blocks"
        if failed is None:
            incoming.pulling = True
            done = partial(self._pulled, command, incoming)
            if not self._world.copy(message.sender, self._instance, message.blocks, done):
                incoming.pulling = False
                failed = "the source is gone"
        if failed is not None:
            self._hear(told.PullFailed(self._kernel.now, command.request, command.epoch, command.stage, failed))

    def _pulled(self, command: do.Pull, incoming: _Incoming, why_not: str | None) -> None:
        """A copy ended; `why_not` is None if all of it came."""
        if not self._instance.alive:
            return
        incoming.pulling = False
        now, name = self._kernel.now, command.request
        if incoming.dropped:
            self._engine.give_back(incoming.blocks)
        elif why_not is not None:
            self._hear(told.PullFailed(now, name, command.epoch, command.stage, why_not))
        else:
            read = command.message.blocks * self._engine.profile.memory.block_bytes
            self._hear(told.Pulled(now, name, command.epoch, command.stage, read))

    def _install(self, command: do.Install) -> None:
        self._engine.at_boundary(partial(self._install_now, command))

    def _install_now(self, command: do.Install) -> None:
        name, epoch, now = command.request, command.epoch, self._kernel.now
        incoming = self._incoming.get(name)
        if incoming is None or incoming.epoch != epoch:
            return
        request = self._world.request(name)
        if request.state is not DETACHED or self._world.is_fenced(name, epoch):
            self._hear(told.InstallFailed(now, name, epoch, "the request is not to be had any more"))
            return
        del self._incoming[name]
        self._instance.migrations_in += 1
        request.migrations += 1
        request.moved_s = now
        request.instances.append(self._instance.id)
        if incoming.blocks:
            request.blocks = incoming.blocks
            self._engine.attach(request)
            request.handover = Handover(now - request.left_s, self._engine.step_s())
            surplus = incoming.blocks - self._engine.held_blocks(request)
            if surplus > 0:
                self._engine.give_back(surplus)
        else:
            self._engine.add(request)
        self._hear(told.Installed(now, name, epoch, request.generated))

    def _drop(self, command: do.Drop) -> None:
        incoming = self._incoming.get(command.request)
        if incoming is None or incoming.epoch != command.epoch:
            return
        del self._incoming[command.request]
        if incoming.pulling:
            incoming.dropped = True
        elif incoming.blocks:
            self._engine.give_back(incoming.blocks)
