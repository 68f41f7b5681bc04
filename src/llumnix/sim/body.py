"""The body of a simulated llumlet: carries its commands out on an engine by arithmetic.

Progress is told when it can matter (when the request is first watched, before every acknowledgement, when its prefill
ends), not after every step as live: between those moments the machine does not look at it, and telling it would cost a
step each.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from llumnix.control import commands as do
from llumnix.control import events as told
from llumnix.control.prefix_table import PrefixTable
from llumnix.sim.account import Account
from llumnix.sim.arrivals import Arrivals, Hear
from llumnix.sim.engine.engine import EngineModel
from llumnix.sim.engine.request import ABORTED, DECODING, DETACHED, PREFILLING, WAITING, SimRequest
from llumnix.sim.kernel import Timer
from llumnix.sim.world import World
from llumnix.types import Epoch, RequestId


class _Kept(NamedTuple):
    """Of a request that was taken out to move, until it is known to be elsewhere."""

    name: RequestId
    blocks: int
    cached_units: int
    generated: int


class SimBody:
    """`hear` takes what happens to the engine by itself, and the answers that come later."""

    def __init__(
        self, account: Account, engine: EngineModel, prefixes: PrefixTable | None, world: World, hear: Hear
    ) -> None:
        self.arrivals = Arrivals(account, engine, prefixes, world, hear)
        self._account = account
        self._engine = engine
        self._world = world
        self._kernel = world.kernel
        self._hear = hear
        self._leaving: set[RequestId] = set()
        self._kept: dict[RequestId, _Kept] = {}
        self._pins: dict[tuple[RequestId, Epoch], int] = {}
        self._limbo: dict[tuple[RequestId, Epoch], int] = {}
        self._wake: Timer | None = None

    # ------------------------------------------------------------------ from the instance

    def on_watched(self, request: SimRequest) -> None:
        """A watched one changed between computing, decoding and waiting."""
        name = RequestId(request.id)
        if request.state is WAITING:
            self._put_in_limbo(request)
            self._hear(told.Preempted(self._kernel.now, name))
        elif request.state is DECODING:
            if name in self._leaving:
                self._detach_at_boundary(request)
            else:
                self.tell_progress(request)

    def ended(self, request: SimRequest) -> None:
        """It finished or was aborted here."""
        self._leaving.discard(RequestId(request.id))
        self._put_in_limbo(request)

    def crash(self) -> list[SimRequest]:
        """The process is gone: returns the requests that were out of the batch, on their way out."""
        if self._wake is not None:
            self._kernel.cancel(self._wake)
        return [request for name in self._kept if self._is_nowhere_else(request := self._world.request(name), name)]

    def gives_up(self, request: SimRequest) -> bool:
        """It was aborted: frees what was kept of it while it is on its way out, if anything was."""
        kept = self._kept.pop(RequestId(request.id), None)
        if kept is None:
            return False
        self._let_go(request, kept)
        return True

    def _let_go(self, request: SimRequest, kept: _Kept) -> None:
        self._engine.release(kept.blocks, kept.cached_units, request.hashes)
        if self._is_nowhere_else(request, kept.name):
            request.state = ABORTED

    def _is_nowhere_else(self, request: SimRequest, name: RequestId) -> bool:
        """Nobody has taken over what is kept here, and it does not go on under another id."""
        return request.state is DETACHED and request.id == name and request.is_on(self._account.id)

    def tell_progress(self, request: SimRequest) -> None:
        progress = self._progress(request)
        if progress is not None:
            self._hear(progress)

    # ------------------------------------------------------------------ talk

    def send(self, command: do.Send) -> None:
        self._world.send(command.to, command.message)

    def send_to_front_end(self, command: do.SendToFrontEnd) -> None:
        self._world.ask_front_end(command.message)

    def notify(self, command: do.Notify) -> None:
        self._world.noticed(command.message)

    def answer_move(self, command: do.AnswerMove) -> None:
        outcome = command.outcome
        if outcome.ok:
            self._account.migrations_out += 1
            held, free = outcome.figures.held_blocks, self._engine.free_blocks()
            if outcome.order.wanted.urgent and self._engine.short_blocks(self._world.relief_steps, free - held):
                self._account.preemptions_avoided += 1
                tokens = (held - self._engine.state_blocks) * self._engine.batch.block_tokens
                self._account.recompute_tokens_saved += tokens
        elif outcome.request is not None:
            self._world.request(outcome.request).moved_s = self._kernel.now
        self._world.move_answered(outcome)

    def wake_at(self, command: do.WakeAt) -> None:
        if self._wake is not None:
            self._kernel.cancel(self._wake)
        self._wake = self._kernel.at(max(command.at, self._kernel.now), self._woken)

    def _woken(self) -> None:
        self._wake = None
        if self._engine.steps.stalled_until_s > self._kernel.now:
            self._wake = self._kernel.at(self._engine.steps.stalled_until_s, self._woken)
            return
        self._hear(told.TimerFired(self._kernel.now))

    # ------------------------------------------------------------------ at the source

    def watch(self, command: do.WatchProgress) -> told.Progress | None:
        self._engine.watched.add(command.request)
        return self._progress(self._world.request(command.request))

    def _progress(self, request: SimRequest) -> told.Progress | None:
        """What is settled now; None if the request is not (or no longer) here and watched."""
        engine = self._engine
        if request.id not in engine.watched or request.state not in (DECODING, PREFILLING, WAITING):
            return None
        decoding = request.state is DECODING
        tokens = engine.tokens_of(request) - 1 if decoding else request.prefilled
        return told.Progress(
            self._kernel.now,
            RequestId(request.id),
            settled_blocks=0 if request.state is WAITING else tokens // engine.batch.block_tokens,
            total_blocks=max(0, engine.held_blocks(request) - engine.state_blocks),
            output_tokens=engine.generated_of(request),
            decoding=decoding,
            queued=request.state is WAITING,
        )

    def unwatch(self, command: do.Unwatch) -> None:
        self._engine.watched.discard(command.request)

    def pin(self, command: do.PinBlocks) -> None:
        key = (command.request, command.epoch)
        self._pins[key] = self._pins.get(key, 0) + command.blocks

    def unpin(self, command: do.UnpinBlocks) -> None:
        key = (command.request, command.epoch)
        self._pins.pop(key, None)
        blocks = self._limbo.pop(key, 0)
        if blocks:
            self._engine.release(blocks)

    def _put_in_limbo(self, request: SimRequest) -> None:
        """The request's blocks were freed; those that are being read stay taken until they are unpinned."""
        for key, blocks in self._pins.items():
            if key[0] == request.id and key not in self._limbo:
                blocks = min(blocks, self._engine.pool.free)  # others may go on using those of its prefix
                self._engine.pool.take(blocks)
                self._limbo[key] = blocks

    def detach(self, command: do.Detach) -> None:
        self._leaving.add(command.request)
        self._engine.watched.add(command.request)
        request = self._world.request(command.request)
        if request.state is WAITING:
            self._try_detach(request)
        else:
            self._detach_at_boundary(request)

    def _detach_at_boundary(self, request: SimRequest) -> None:
        self._engine.steps.at_boundary(partial(self._try_detach, request))

    def _try_detach(self, request: SimRequest) -> None:
        name = RequestId(request.id)
        if name not in self._leaving:
            return
        if self._engine.detach(request):
            self._kept[name] = _Kept(name, request.blocks, request.cached_units, request.generated)
            request.blocks = request.cached_units = 0
        elif self._engine.withdraw(request):
            self._kept[name] = _Kept(name, 0, 0, request.generated)
        else:
            return  # it is being computed: its first token will bring us here again
        request.left_s = self._kernel.now
        self._leaving.discard(name)
        self._engine.watched.discard(name)
        blocks = self._kept[name].blocks
        state_blocks = min(blocks, self._engine.state_blocks)
        self._hear(told.Detached(self._kernel.now, name, blocks - state_blocks, request.generated, state_blocks))

    def reattach(self, command: do.Reattach) -> None:
        self._leaving.discard(command.request)
        self._engine.watched.discard(command.request)
        kept = self._kept.pop(command.request, None)
        request = self._world.request(command.request)
        if kept is None:
            return
        if request.id != kept.name:
            self._let_go(request, kept)
            return
        if not request.is_on(self._account.id):  # who had taken it over was lost, with the tokens that it made
            request.instances.append(self._account.id)
        request.generated = kept.generated
        request.blocks, request.cached_units = kept.blocks, kept.cached_units
        if request.blocks:
            self._engine.steps.at_boundary(partial(self._engine.attach, request))
        else:
            self._engine.add(request)

    def release(self, command: do.Release) -> None:
        kept = self._kept.pop(command.request, None)
        request = self._world.request(command.request)
        if kept is not None:
            self._let_go(request, kept)
        elif request.id == command.request and request.is_on(self._account.id):
            self._engine.abort(request)

    # ------------------------------------------------------------------ at the target

    def reserve(self, command: do.Reserve) -> told.Reserved | told.ReserveFailed:
        return self.arrivals.reserve(command, self._kept)

    def pull(self, command: do.Pull) -> told.Pulled | told.PullFailed | None:
        return self.arrivals.pull(command)

    def install(self, command: do.Install) -> None:
        self.arrivals.install(command)

    def drop(self, command: do.Drop) -> None:
        self.arrivals.drop(command)
