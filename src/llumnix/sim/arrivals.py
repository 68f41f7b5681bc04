"""Requests on their way to one simulated engine: reservations, and the copies that fill them."""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import partial

from llumnix.control import commands as do
from llumnix.control import events as told
from llumnix.control.homes import FOR_PROMPTS
from llumnix.control.messages import Commit, Copy
from llumnix.control.prefix_table import PrefixTable
from llumnix.sim.account import Account
from llumnix.sim.engine.engine import EngineModel
from llumnix.sim.engine.request import DETACHED, Handover, SimRequest
from llumnix.sim.reporting import chunks_of, comes
from llumnix.sim.world import World
from llumnix.types import Epoch, RequestId, Role

Hear = Callable[[told.AnyEvent], None]


_SPARE_BLOCKS = 1
"""An engine reserves so many more than it was asked for."""


class _Reservation:
    """Of one attempt."""

    __slots__ = ("asked", "blocks", "cached_units", "dropped", "epoch", "here_blocks", "pulling", "reads", "why_not")

    def __init__(self, epoch: Epoch, blocks: int, cached_units: int, here_blocks: int) -> None:
        self.epoch = epoch
        self.blocks = blocks
        self.cached_units = cached_units
        """Of its prefix, whose blocks were here already (they are in `blocks`, too)."""
        self.here_blocks = here_blocks
        """Blocks of the sequence that are here, or on their way."""
        self.reads: Copy | Commit | None = None
        """What is read, or was read last."""
        self.pulling = False
        self.why_not: str | None = None
        """The last read ended without all of it."""
        self.asked: do.Pull | None = None
        """The llumlet waits for what is read."""
        self.dropped = False


class Arrivals:
    """The target's part of a body. `hear` takes the answers that come later."""

    def __init__(
        self, account: Account, engine: EngineModel, prefixes: PrefixTable | None, world: World, hear: Hear
    ) -> None:
        self._account = account
        self._engine = engine
        self._prefixes = prefixes
        self._world = world
        self._kernel = world.kernel
        self._hear = hear
        self._reservations: dict[RequestId, _Reservation] = {}

    @property
    def reserved_blocks(self) -> int:
        """Taken for requests that are on their way in."""
        return sum(reservation.blocks for reservation in self._reservations.values())

    def reserve(self, command: do.Reserve, kept: Container[RequestId]) -> told.Reserved | told.ReserveFailed:
        """`kept`: requests that are here still."""
        name, epoch, now = command.request, command.epoch, self._kernel.now
        limits = self._engine.profile.scheduler
        if name in self._reservations or name in kept or self._world.request(name).is_on(self._account.id):
            return told.ReserveFailed(now, name, epoch, "it has this request already")
        if self._engine.running + len(self._reservations) >= limits.max_num_seqs:
            return told.ReserveFailed(now, name, epoch, "its batch is full")
        if self._account.role is Role.PREFILL and command.message.to_decode:
            return told.ReserveFailed(now, name, epoch, FOR_PROMPTS)
        blocks = command.blocks + self._engine.state_blocks if command.blocks else 0
        hashes, tokens = self._world.request(name).hashes, command.blocks * self._engine.batch.block_tokens
        cached_units, skip_blocks = self._engine.pool.cached(hashes, tokens)
        if blocks and not self._engine.reserve(blocks - skip_blocks, hashes[:cached_units]):
            return told.ReserveFailed(now, name, epoch, "not enough free blocks")
        self._reservations[name] = _Reservation(epoch, blocks, cached_units, skip_blocks)
        return told.Reserved(now, name, epoch, skip_blocks)

    def begin(self, message: Copy | Commit) -> None:
        """It arrives while the engine is in a step; what it names is read at once."""
        reservation = self._reservations.get(message.request)
        if reservation is None or reservation.epoch != message.epoch or reservation.pulling:
            return
        is_next = message.first_block == reservation.here_blocks and message is not reservation.reads
        if is_next and _copied_blocks(message) and self._more_blocks(reservation, message) <= _SPARE_BLOCKS:
            self._read(reservation, message)

    def pull(self, command: do.Pull) -> told.Pulled | told.PullFailed | None:
        reservation = self._reservations[command.request]
        message = command.message
        more = self._more_blocks(reservation, message)
        if more > 0:
            if not self._engine.reserve(more):
                return self._failed(command, "not enough free blocks")
            reservation.blocks += more
        reservation.here_blocks = message.first_block + message.blocks
        if message is not reservation.reads and not self._read(reservation, message):
            return self._failed(command, "the source is gone")
        if reservation.pulling:
            reservation.asked = command
            return None
        return self._ended(command, reservation)

    def _more_blocks(self, reservation: _Reservation, message: Copy | Commit) -> int:
        """That it needs and has not."""
        end_block = message.first_block + message.blocks
        return end_block + (self._engine.state_blocks if end_block else 0) - reservation.blocks

    def _read(self, reservation: _Reservation, message: Copy | Commit) -> bool:
        """False: nobody is there to read from."""
        reservation.reads, reservation.why_not, reservation.pulling = message, None, True
        done = partial(self._came, message.request, reservation)
        if not self._world.copy(message.sender, self._account.id, _copied_blocks(message), done):
            reservation.reads, reservation.pulling = None, False
        return reservation.pulling

    def _failed(self, command: do.Pull, why: str) -> told.PullFailed:
        return told.PullFailed(self._kernel.now, command.request, command.epoch, command.stage, why)

    def _came(self, name: RequestId, reservation: _Reservation, why_not: str | None) -> None:
        """A copy ended; `why_not` is None if all of it came."""
        if not self._account.alive:
            return
        reservation.pulling, reservation.why_not = False, why_not
        command, reservation.asked = reservation.asked, None
        if reservation.dropped:
            self._free(name, reservation)
        elif command is not None:
            self._hear(self._ended(command, reservation))

    def _ended(self, command: do.Pull, reservation: _Reservation) -> told.Pulled | told.PullFailed:
        if reservation.why_not is not None:
            return self._failed(command, reservation.why_not)
        read = _copied_blocks(command.message) * self._engine.profile.memory.block_bytes
        return told.Pulled(self._kernel.now, command.request, command.epoch, command.stage, read)

    def install(self, command: do.Install) -> None:
        self._engine.steps.at_boundary(partial(self._install_now, command))

    def _install_now(self, command: do.Install) -> None:
        name, epoch, now = command.request, command.epoch, self._kernel.now
        reservation = self._reservations.get(name)
        if reservation is None or reservation.epoch != epoch:
            return
        request = self._world.request(name)
        if request.state is not DETACHED or self._world.is_fenced(name, epoch):
            self._hear(told.InstallFailed(now, name, epoch, "the request is not to be had any more"))
            return
        del self._reservations[name]
        self._account.migrations_in += 1
        request.migrations += 1
        request.moved_s = now
        request.instances.append(self._account.id)
        if reservation.blocks:
            request.blocks, request.cached_units = reservation.blocks, reservation.cached_units
            self._engine.attach(request)
            self._keep_prefix(request)
            request.handover = Handover(now - request.left_s, self._engine.steps.decode_s())
            surplus = reservation.blocks - self._engine.held_blocks(request)
            if surplus > 0:
                self._engine.release(surplus)
        else:
            comes(self._prefixes, self._engine, request)
            self._engine.add(request)
        self._hear(told.Installed(now, name, epoch, request.generated))

    def drop(self, command: do.Drop) -> None:
        reservation = self._reservations.get(command.request)
        if reservation is None or reservation.epoch != command.epoch:
            return
        del self._reservations[command.request]
        if reservation.pulling:
            reservation.dropped = True
        elif reservation.blocks:
            self._free(command.request, reservation)

    def _free(self, name: RequestId, reservation: _Reservation) -> None:
        hashes = self._world.request(name).hashes
        self._engine.release(reservation.blocks, reservation.cached_units, hashes)

    def _keep_prefix(self, request: SimRequest) -> None:
        """Others can use what came."""
        self._engine.pool.publish(request)
        if self._prefixes is not None:
            self._prefixes.holds(chunks_of(request))


def _copied_blocks(message: Copy | Commit) -> int:
    return message.blocks + (message.state_blocks if isinstance(message, Commit) else 0)
