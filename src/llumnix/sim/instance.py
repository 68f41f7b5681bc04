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
from typing import Any, Protocol

from llumnix.config import ClusterConfig
from llumnix.control import commands as do
from llumnix.control import events as told
from llumnix.control.llumlet import Llumlet
from llumnix.control.messages import AnyMessage, AnyNotice, Copied, Doubt, Prepared
from llumnix.policy.snapshot import InstanceSnapshot, RequestSnapshot
from llumnix.sim.cost_model import Profile
from llumnix.sim.engine import Engine, Scheduler
from llumnix.sim.kernel import Kernel, Timer
from llumnix.sim.request import DECODING, DETACHED, FINISHED, NEW, PREFILLING, WAITING, Handover, SimRequest
from llumnix.types import Epoch, InstanceId, InstanceState, Priority, RequestId, RequestState

QUEUE_SHOWN = 64
"""Queued requests that a llumlet is shown when it picks a victim; it takes from the front of the queue."""

DRIFT_REPORT_S = 0.4
"""A busy instance reports at least this often. Live it is at every step, but between two events only the blocks of
the batch grow: in this time by half a block per request, which is noise against any threshold."""

IDLE_REPORT_S = 2.0
"""An idle instance reports at least this often: a sign of life."""


class World(Protocol):
    """What an instance needs from the cluster around it."""

    kernel: Kernel
    profile: Profile
    cluster: ClusterConfig
    reports_per_step: bool
    """Reports describe the start of a step and go out with its tokens, as in the paper's artifact."""

    def new_llumlet(self, instance: InstanceId) -> Llumlet: ...
    def request(self, request: RequestId) -> SimRequest: ...
    def send(self, sender: SimInstance, to: InstanceId, message: AnyMessage) -> None: ...
    def ask_front_end(self, doubt: Doubt) -> None: ...
    def noticed(self, notice: AnyNotice) -> None: ...
    def is_fenced(self, request: RequestId, epoch: Epoch) -> bool: ...
    def move_answered(self, source: SimInstance, answer: do.AnswerMove) -> None: ...
    def copy(self, source: InstanceId, target: SimInstance, blocks: int, done: Any) -> bool: ...
    def reported(self, snapshot: InstanceSnapshot, late_s: float) -> None: ...
    def finished(self, instance: SimInstance, request: SimRequest) -> None: ...


class _Incoming:
    """A reservation for one attempt."""

    __slots__ = ("blocks", "dropped", "epoch", "pulling")

    def __init__(self, epoch: Epoch, blocks: int) -> None:
        self.epoch = epoch
        self.blocks = blocks
        self.pulling = False
        self.dropped = False


class SimInstance:
    """Engine, llumlet and load report of one instance."""

    def __init__(self, id: InstanceId, world: World, scheduler: Scheduler, unit_tokens: int = 0) -> None:
        self.id = id
        self.state = InstanceState.RUNNING
        self.drain_keep = False
        self.started_s = world.kernel.now
        self.migrations_in = 0
        self.migrations_out = 0
        self.dispatches_seen = 0
        self.alive = True
        self.copies = 0
        """Copies that this instance reads or is read by now."""
        self._world = world
        self._kernel = world.kernel
        self.engine = Engine(world.kernel, world.profile, scheduler, self, unit_tokens)
        self._llumlet: Llumlet | None = None
        self._events: deque[Any] = deque()
        self._hearing = False
        self._move_ids = 0
        self._wake: Timer | None = None
        self._seq = 0
        self._report_timer: Timer | None = None
        self._report_due_s = 0.0
        self._reported_s = -1.0
        self._leaving: set[RequestId] = set()
        self._kept: dict[RequestId, tuple[int, int]] = {}
        self._pins: dict[tuple[RequestId, Epoch], int] = {}
        self._limbo: dict[tuple[RequestId, Epoch], int] = {}
        self._incoming: dict[RequestId, _Incoming] = {}
        self._carry_out: dict[type, Callable[[Any], None]] = {
            do.Send: self._send,
            do.SendToFrontEnd: self._send_to_front_end,
            do.Notify: self._notify,
            do.WatchProgress: self._watch,
            do.Unwatch: self._unwatch,
            do.PinBlocks: self._pin,
            do.UnpinBlocks: self._unpin,
            do.Detach: self._detach,
            do.Reattach: self._reattach,
            do.Release: self._release,
            do.Reserve: self._reserve,
            do.Pull: self._pull,
            do.Install: self._install,
            do.Drop: self._drop,
            do.AnswerMove: self._answer,
            do.WakeAt: self._wake_at,
        }
        self.report_soon()

    # ------------------------------------------------------------------ from the cluster

    @property
    def llumlet(self) -> Llumlet:
        """Made when it is first needed: most of a large cluster never migrates."""
        if self._llumlet is None:
            self._llumlet = self._world.new_llumlet(self.id)
        return self._llumlet

    def add(self, request: SimRequest) -> None:
        """A request from the front end arrives."""
        if not self.alive:
            return
        self.dispatches_seen += 1
        request.instances.append(self.id)
        self.engine.add(request)

    def receive(self, message: AnyMessage) -> None:
        """A control message arrives."""
        if not self.alive:
            return
        if isinstance(message, Prepared | Copied):
            self._tell_progress(self._world.request(message.request))
        self.hear(told.Received(self._kernel.now, message))

    def move_out(self, target: InstanceId, request: RequestId | None, reason: str, room: int, count: int) -> None:
        """The scheduler's order arrives."""
        if not self.alive:
            return
        self._move_ids += 1
        move_id = told.MoveId(self._move_ids)
        candidates = self.candidates()
        now = self._kernel.now
        self.hear(told.MoveOut(now, move_id, target, request, reason, candidates, room, count))

    def drain(self, keep: bool) -> None:
        if self.alive and self.state is InstanceState.RUNNING:
            self.state = InstanceState.DRAINING
            self.drain_keep = keep
            self.hear(told.Draining(self._kernel.now))
            self.report_soon()

    def lose_peer(self, instance: InstanceId) -> None:
        if self.alive and self._llumlet is not None:
            self.hear(told.PeerLost(self._kernel.now, instance))

    def die(self) -> list[SimRequest]:
        """The process is gone at once; nothing more comes from it. Returns the requests that it had, those that
        were on their way out included."""
        self.alive = False
        for timer in (self._wake, self._report_timer):
            if timer is not None:
                self._kernel.cancel(timer)
        lost = self.engine.crash()
        for kept in self._kept:
            request = self._world.request(kept)
            if request.state is DETACHED:
                request.state = NEW
                lost.append(request)
        return lost

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

    # ------------------------------------------------------------------ the load report

    def look(self) -> InstanceSnapshot:
        """The load now, for display: not a report, so not numbered as one."""
        snapshot = self.snapshot()
        self._seq -= 1
        return snapshot

    def snapshot(self) -> InstanceSnapshot:
        """The load now, as a numbered report."""
        engine = self.engine
        waiting = engine.waiting
        block_tokens = engine.batch.block_tokens
        started = engine.steps_started()
        self._seq += 1
        moving = self._llumlet
        shortest = engine.batch.shortest_tokens(started)
        return InstanceSnapshot(
            id=self.id,
            at=self._kernel.now,
            seq=self._seq,
            state=self.state,
            total_blocks=engine.pool.total,
            watermark_blocks=engine.pool.watermark,
            free_blocks=engine.pool.free - (engine.batch.blocks_for(started) if started else 0),
            block_tokens=block_tokens,
            max_running=engine.profile.scheduler.max_num_seqs,
            running=engine.running,
            waiting=len(waiting),
            preempted=engine.preempted,
            head_of_line_blocks=engine.blocks_of(waiting[0].tokens) if waiting else 0,
            queued_blocks=engine.queued_blocks,
            high_running=engine.high_running,
            high_waiting=engine.high_waiting,
            incoming=moving.incoming if moving is not None else 0,
            outgoing=moving.outgoing if moving is not None else 0,
            preemptions=engine.preemptions,
            migrations_in=self.migrations_in,
            migrations_out=self.migrations_out,
            smallest_running_blocks=-(-(shortest - 1) // block_tokens) if shortest else 0,
            dispatches_seen=(self.dispatches_seen,),
            drain_keep=self.drain_keep,
        )

    def candidates(self) -> tuple[RequestSnapshot, ...]:
        """Running requests, and the front of the queue, for the choice of a victim."""
        queue = self.engine.waiting[:QUEUE_SHOWN]
        return tuple(self._describe(request) for request in [*self.engine.running_requests(), *queue])

    def _describe(self, request: SimRequest) -> RequestSnapshot:
        tokens = self.engine.tokens_of(request)
        return RequestSnapshot(
            id=RequestId(request.id),
            state=RequestState.WAITING if request.state is WAITING else RequestState.RUNNING,
            priority=Priority(request.priority),
            arrival_s=request.arrival_s,
            prompt_tokens=request.prompt_tokens,
            output_tokens=tokens - request.prompt_tokens,
            held_blocks=self.engine.held_blocks(request),
            needed_blocks=self.engine.blocks_of(tokens),
            movable=self.llumlet.is_settled(RequestId(request.id)),
            preemptions=request.preemptions,
            moved_s=request.moved_s,
        )

    def report_soon(self) -> None:
        """A report goes out now, or when the shortest interval since the last one is over."""
        due = max(self._kernel.now, self._reported_s + self._world.cluster.report_interval_s)
        if self._report_timer is None or due < self._report_due_s:
            self._report_at(due)

    def _report_at(self, due: float) -> None:
        if self._report_timer is not None:
            self._kernel.cancel(self._report_timer)
        self._report_due_s = due
        self._report_timer = self._kernel.at(due, self._report, rank=1)

    def _report(self) -> None:
        now = self._kernel.now
        self._report_timer = None
        self._reported_s = now
        stalled = self.engine.stalled_until_s
        if stalled <= now:
            late_s = self.engine.step_end_s() - now if self._world.reports_per_step else 0.0
            self._world.reported(self.snapshot(), late_s)
        if self._report_timer is None:
            self._report_at(max(stalled, now + (IDLE_REPORT_S if self.engine.idle else DRIFT_REPORT_S)))

    # ------------------------------------------------------------------ the engine's listener

    def on_changed(self) -> None:
        self.report_soon()

    def on_queued(self) -> None:
        if self._world.reports_per_step:
            # Seen at the start of the next step at the earliest.
            due = self.engine.step_end_s()
            if self._report_timer is None or due < self._report_due_s:
                self._report_at(due)
        else:
            self.report_soon()

    def on_finished(self, request: SimRequest) -> None:
        self._put_in_limbo(request)
        if self._llumlet is not None:
            self.hear(told.Gone(self._kernel.now, RequestId(request.id), "finished"))
        self._world.finished(self, request)

    def on_settled(self, request: SimRequest) -> None:
        name = RequestId(request.id)
        if request.state is WAITING:
            self._put_in_limbo(request)
            self.hear(told.Preempted(self._kernel.now, name))
        elif request.state is DECODING:
            if name in self._leaving:
                self.engine.at_boundary(partial(self._try_detach, request))
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
        elif command.request is not None:
            self._world.request(command.request).moved_s = self._kernel.now
        self._world.move_answered(self, command)

    def _wake_at(self, command: do.WakeAt) -> None:
        if self._wake is not None:
            self._kernel.cancel(self._wake)
        self._wake = self._kernel.at(max(command.at, self._kernel.now), self._woken)

    def _woken(self) -> None:
        self._wake = None
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

    def _pin(self, command: do.PinBlocks) -> None:
        key = (command.request, command.epoch)
        self._pins[key] = self._pins.get(key, 0) + command.blocks

    def _unpin(self, command: do.UnpinBlocks) -> None:
        key = (command.request, command.epoch)
        self._pins.pop(key, None)
        blocks = self._limbo.pop(key, 0)
        if blocks:
            self.engine.give_back(blocks)

    def _put_in_limbo(self, request: SimRequest) -> None:
        """The request's blocks were freed; those that are being read stay taken until they are unpinned."""
        for key, blocks in self._pins.items():
            if key[0] == request.id and key not in self._limbo:
                self.engine.pool.take(blocks)
                self._limbo[key] = blocks

    def _detach(self, command: do.Detach) -> None:
        self._leaving.add(command.request)
        self.engine.watched.add(command.request)
        request = self._world.request(command.request)
        if request.state is WAITING:
            self._try_detach(request)
        else:
            self.engine.at_boundary(partial(self._try_detach, request))

    def _try_detach(self, request: SimRequest) -> None:
        name = RequestId(request.id)
        if name not in self._leaving:
            return
        if self.engine.detach(request):
            self._kept[name] = (request.blocks, request.cached_units)
            request.blocks = request.cached_units = 0
        elif self.engine.withdraw(request):
            self._kept[name] = (0, 0)
        else:
            # It ended (`Gone` went out), or it is being computed: then its first token will bring us here again.
            if request.state is FINISHED:
                self._leaving.discard(name)
            return
        request.left_s = self._kernel.now
        self._leaving.discard(name)
        self.engine.watched.discard(name)
        self.hear(told.Detached(self._kernel.now, name, self._kept[name][0], request.generated))

    def _reattach(self, command: do.Reattach) -> None:
        self._leaving.discard(command.request)
        self.engine.watched.discard(command.request)
        kept = self._kept.pop(command.request, None)
        request = self._world.request(command.request)
        if kept is None or request.state is not DETACHED:
            return
        request.blocks, request.cached_units = kept
        if request.blocks:
            self.engine.at_boundary(partial(self.engine.attach, request))
        else:
            self.engine.add(request)

    def _release(self, command: do.Release) -> None:
        kept = self._kept.pop(command.request, None)
        request = self._world.request(command.request)
        if kept is not None:
            self.engine.release(*kept, request.hashes)
        elif request.instances and request.instances[-1] == self.id:
            self.engine.abort(request)

    def _reserve(self, command: do.Reserve) -> None:
        name, epoch, now = command.request, command.epoch, self._kernel.now
        limits = self.engine.profile.scheduler
        if name in self._incoming or name in self._kept:
            self.hear(told.ReserveFailed(now, name, epoch, "it has this request already"))
        elif self.engine.running + len(self._incoming) >= limits.max_num_seqs:
            self.hear(told.ReserveFailed(now, name, epoch, "its batch is full"))
        elif command.blocks and not self.engine.reserve(command.blocks):
            self.hear(told.ReserveFailed(now, name, epoch, "not enough free blocks"))
        else:
            self._incoming[name] = _Incoming(epoch, command.blocks)
            self.hear(told.Reserved(now, name, epoch, 0))

    def _pull(self, command: do.Pull) -> None:
        incoming = self._incoming[command.request]
        message = command.message
        more = message.first_block + message.blocks - incoming.blocks
        failed: str | None = None
        if more > 0:
            if self.engine.reserve(more):
                incoming.blocks += more
            else:
                failed = "not enough free blocks"
        if failed is None:
            incoming.pulling = True
            done = partial(self._pulled, command, incoming)
            if not self._world.copy(message.sender, self, message.blocks, done):
                incoming.pulling = False
                failed = "the source is gone"
        if failed is not None:
            self.hear(told.PullFailed(self._kernel.now, command.request, command.epoch, command.stage, failed))

    def _pulled(self, command: do.Pull, incoming: _Incoming, why_not: str | None) -> None:
        """A copy ended; `why_not` is None if all of it came."""
        if not self.alive:
            return
        incoming.pulling = False
        now, name = self._kernel.now, command.request
        if incoming.dropped:
            self.engine.give_back(incoming.blocks)
        elif why_not is not None:
            self.hear(told.PullFailed(now, name, command.epoch, command.stage, why_not))
        else:
            read = command.message.blocks * self.engine.profile.memory.block_bytes
            self.hear(told.Pulled(now, name, command.epoch, command.stage, read))

    def _install(self, command: do.Install) -> None:
        self.engine.at_boundary(partial(self._install_now, command))

    def _install_now(self, command: do.Install) -> None:
        name, epoch, now = command.request, command.epoch, self._kernel.now
        incoming = self._incoming.get(name)
        if incoming is None or incoming.epoch != epoch:
            return
        request = self._world.request(name)
        if request.state is not DETACHED or self._world.is_fenced(name, epoch):
            self.hear(told.InstallFailed(now, name, epoch, "the request is not to be had any more"))
            return
        del self._incoming[name]
        self.migrations_in += 1
        request.migrations += 1
        request.moved_s = now
        request.instances.append(self.id)
        if incoming.blocks:
            request.blocks = incoming.blocks
            self.engine.attach(request)
            request.handover = Handover(now - request.left_s, self.engine.step_s())
            surplus = incoming.blocks - self.engine.held_blocks(request)
            if surplus > 0:
                self.engine.give_back(surplus)
        else:
            self.engine.add(request)
        self.hear(told.Installed(now, name, epoch, request.generated))

    def _drop(self, command: do.Drop) -> None:
        incoming = self._incoming.get(command.request)
        if incoming is None or incoming.epoch != command.epoch:
            return
        del self._incoming[command.request]
        if incoming.pulling:
            incoming.dropped = True
        elif incoming.blocks:
            self.engine.give_back(incoming.blocks)
