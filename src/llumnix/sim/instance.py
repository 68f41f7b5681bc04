"""One simulated instance: an engine by arithmetic and the very llumlet that serves live.

The twin of the live driver: it turns what the engine does into events for the llumlet and carries out the
llumlet's commands on the engine. Progress is told when it can matter (when the request is first watched,
before every acknowledgement, when its prefill ends), not after every step as live: between those moments
the machine does not look at it, and telling it would cost a step each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from llumnix.control import commands as do
from llumnix.control import events as told
from llumnix.control.llumlet import Llumlet
from llumnix.control.messages import AnyMessage, Copied, Prepared
from llumnix.control.scheduler_events import MoveRequest
from llumnix.sim.engine.engine import Engine, Scheduler
from llumnix.sim.engine.request import DECODING, NEW, PREFILLING, WAITING, SimRequest
from llumnix.sim.kernel import Timer
from llumnix.sim.migration_body import MigrationBody
from llumnix.sim.reporting import Reporter, candidates
from llumnix.sim.world import World
from llumnix.types import InstanceId, InstanceState, RequestId


class SimInstance:
    """Engine, llumlet and load report of one instance."""

    def __init__(self, id: InstanceId, world: World, scheduler: Scheduler, unit_tokens: int = 0) -> None:
        self.id = id
        self.state = InstanceState.RUNNING
        self.drain_keep = False
        self.migrations_in = 0
        self.migrations_out = 0
        self.ended = 0
        self.preemptions_avoided = 0
        self.recompute_tokens_saved = 0
        self.dispatches_seen = 0
        self.alive = True
        self.copies = 0
        """Copies that this instance reads or is read by now."""
        self.started_llumlet: Llumlet | None = None
        """None as long as nothing concerned it: most of a large cluster never migrates."""
        self._world = world
        self._kernel = world.kernel
        self.engine = Engine(world.kernel, world.profile, scheduler, self, unit_tokens)
        self.reports = Reporter(self, world)
        self.body = MigrationBody(self, self.engine, world, self.hear)
        self._events: deque[Any] = deque()
        self._hearing = False
        self._move_ids = 0
        self._urgent: set[told.MoveId] = set()
        """Orders to make room before somebody has to be preempted."""
        self._wake: Timer | None = None
        self._carry_out: dict[type, Callable[[Any], None]] = {
            do.Send: self._send,
            do.SendToFrontEnd: self._send_to_front_end,
            do.Notify: self._notify,
            do.WatchProgress: self._watch,
            do.Unwatch: self._unwatch,
            do.AnswerMove: self._answer,
            do.WakeAt: self._wake_at,
            **self.body.commands,
        }
        self.reports.soon()

    # ------------------------------------------------------------------ from the cluster

    @property
    def llumlet(self) -> Llumlet:
        if self.started_llumlet is None:
            self.started_llumlet = self._world.new_llumlet(self.id)
        return self.started_llumlet

    def add(self, request: SimRequest) -> None:
        """A request from the front end arrives."""
        if not self.alive:
            return
        self.dispatches_seen += 1
        request.instances.append(self.id)
        self.engine.add(request)

    def receive(self, message: AnyMessage) -> None:
        """A control message arrives."""
        if not self.alive or self._reads_later(self.receive, message):
            return
        if isinstance(message, Prepared | Copied):
            self._tell_progress(self._world.request(message.request))
        self.hear(told.Received(self._kernel.now, message))

    def move_out(self, order: MoveRequest) -> None:
        """The scheduler's order arrives."""
        if not self.alive or self._reads_later(self.move_out, order):
            return
        self._move_ids += 1
        move_id = told.MoveId(self._move_ids)
        if order.urgent:
            self._urgent.add(move_id)
        self.hear(
            told.MoveOut(
                self._kernel.now,
                move_id,
                target=order.target,
                request=order.request,
                reason=order.reason,
                candidates=candidates(self, tells_rest=not self._world.paper_body),
                room_blocks=order.room_blocks,
                count=order.count,
                urgent=order.urgent,
                at_least_blocks=order.at_least_blocks,
            )
        )

    def set_draining(self, draining: bool, keep: bool) -> None:
        if self._reads_later(self.set_draining, draining, keep):
            return
        state = InstanceState.DRAINING if draining else InstanceState.RUNNING
        if self.alive and (self.state, self.drain_keep) != (state, keep):
            self.state = state
            self.drain_keep = keep
            self.hear((told.Draining if draining else told.Accepting)(self._kernel.now))
            self.reports.soon()

    def abort_all(self, aborted: Callable[[SimRequest], None]) -> int:
        """The front end takes all requests back, but those that are being handed over; returns how many. `aborted` is
        told of each when the step in flight has ended."""
        there = [*self.engine.running_requests(), *self.engine.waiting]
        if there:
            self.engine.at_boundary(partial(self._abort, there, aborted))
        return len(there)

    def _abort(self, requests: list[SimRequest], aborted: Callable[[SimRequest], None]) -> None:
        for request in filter(self.engine.abort_now, requests):
            self.ended += 1
            self.body.ended(request)
            request.state = NEW
            if self.started_llumlet is not None:
                self.hear(told.Gone(self._kernel.now, RequestId(request.id), "aborted"))
            aborted(request)

    def lose_peer(self, instance: InstanceId) -> None:
        if self._reads_later(self.lose_peer, instance):
            return
        if self.alive and self.started_llumlet is not None:
            self.hear(told.PeerLost(self._kernel.now, instance))

    def hang(self, seconds: float) -> None:
        """The engine does nothing for so long, while its process beats (a fault)."""
        self.engine.stall(seconds)
        self.reports.beat()

    def _reads_later(self, action: Callable[..., None], *mail: object) -> bool:
        """The thread that would read it stands still: then `action` follows when it goes on."""
        on_s = self.engine.stalled_until_s
        if on_s <= self._kernel.now:
            return False
        self._kernel.at(on_s, action, *mail)
        return True

    def die(self) -> list[SimRequest]:
        """The process is gone at once; nothing more comes from it. Returns the requests that it had, those that
        were on their way out included."""
        self.alive = False
        self.reports.stop()
        if self._wake is not None:
            self._kernel.cancel(self._wake)
        return self.engine.crash() + self.body.crash()

    def hear(self, event: Any) -> None:
        """Hands an event to the llumlet and carries out what it answers, in order; answers wait their turn."""
        self._events.append(event)
        if self._hearing:
            return
        self._hearing = True
        while self._events and self.alive:
            for command in self.llumlet.handle(self._events.popleft()):
                self._carry_out[type(command)](command)
        self._hearing = False

    # ------------------------------------------------------------------ the engine's listener

    def on_changed(self) -> None:
        self.reports.soon()

    def on_queued(self) -> None:
        if self._world.paper_body:
            # Seen at the start of the next step at the earliest.
            self.reports.not_after(self.engine.step_end_s())
        else:
            self.reports.soon()

    def on_finished(self, request: SimRequest) -> None:
        self.ended += 1
        self.body.ended(request)
        if self.started_llumlet is not None:
            self.hear(told.Gone(self._kernel.now, RequestId(request.id), "finished"))
        self._world.finished(self, request)

    def on_settled(self, request: SimRequest) -> None:
        name = RequestId(request.id)
        if request.state is WAITING:
            self.body.put_in_limbo(request)
            self.hear(told.Preempted(self._kernel.now, name))
        elif request.state is DECODING:
            if self.body.is_leaving(name):
                self.body.detach_at_boundary(request)
            else:
                self._tell_progress(request)

    # ------------------------------------------------------------------ the llumlet's commands

    def _send(self, command: do.Send) -> None:
        self._world.send(self, command.to, command.message)

    def _send_to_front_end(self, command: do.SendToFrontEnd) -> None:
        self._world.ask_front_end(command.message)

    def _notify(self, command: do.Notify) -> None:
        self._world.noticed(command.message)

    def _answer(self, command: do.AnswerMove) -> None:
        if command.ok:
            self.migrations_out += 1
            held = command.figures.held_blocks
            if command.move_id in self._urgent and self.engine.short_blocks(self._world.relief_steps, held):
                self.preemptions_avoided += 1
                self.recompute_tokens_saved += held * self.engine.batch.block_tokens
        elif command.request is not None:
            self._world.request(command.request).moved_s = self._kernel.now
        self._world.move_answered(self, command)

    def _wake_at(self, command: do.WakeAt) -> None:
        if self._wake is not None:
            self._kernel.cancel(self._wake)
        self._wake = self._kernel.at(max(command.at, self._kernel.now), self._woken)

    def _woken(self) -> None:
        self._wake = None
        if self.engine.stalled_until_s > self._kernel.now:
            self._wake = self._kernel.at(self.engine.stalled_until_s, self._woken)
            return
        self.hear(told.TimerFired(self._kernel.now))

    def _watch(self, command: do.WatchProgress) -> None:
        self.engine.watched.add(command.request)
        self._tell_progress(self._world.request(command.request))

    def _unwatch(self, command: do.Unwatch) -> None:
        self.engine.watched.discard(command.request)

    def _tell_progress(self, request: SimRequest) -> None:
        """What is settled now; nothing if the request is not (or no longer) here and watched."""
        engine = self.engine
        if request.id not in engine.watched or request.state not in (DECODING, PREFILLING, WAITING):
            return
        decoding = request.state is DECODING
        tokens = engine.tokens_of(request) - 1 if decoding else request.prefilled
        self.hear(
            told.Progress(
                self._kernel.now,
                RequestId(request.id),
                settled_blocks=0 if request.state is WAITING else tokens // engine.batch.block_tokens,
                total_blocks=engine.held_blocks(request),
                output_tokens=engine.generated_of(request),
                decoding=decoding,
                queued=request.state is WAITING,
            )
        )
