"""One simulated instance: an engine by arithmetic and the very llumlet that serves live.

The twin of the live driver: it turns what the cluster says and what the engine does into events for the llumlet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from llumnix.control import events as told
from llumnix.control.body import LlumletLoop
from llumnix.control.homes import Homes
from llumnix.control.messages import AnyMessage, Commit, Copied, Copy, Prepared
from llumnix.control.orders import MoveOrder
from llumnix.sim.account import Account
from llumnix.sim.body import SimBody
from llumnix.sim.engine.engine import EngineModel, Scheduler
from llumnix.sim.engine.request import ABORTED, PREFILLING, SimRequest
from llumnix.sim.reporting import Reporter, candidates, comes, describe, prefix_table
from llumnix.sim.world import World
from llumnix.types import InstanceId, InstanceState, RequestId, Role


class SimInstance:
    """Engine, llumlet and load report of one instance."""

    def __init__(self, id: InstanceId, world: World, scheduler: Scheduler, unit_tokens: int = 0) -> None:
        self.id = id
        self.account = Account(id)
        self.copies = 0
        """Copies that this instance reads or is read by now."""
        self._world = world
        self._kernel = world.kernel
        self.engine = EngineModel(world.kernel, world.profile, scheduler, self, unit_tokens)
        self.engine.step_cost = world.step_cost(id)
        self.take_role(Role.MIXED)
        self.prefixes = prefix_table(self.engine)
        self.reports = Reporter(self.account, self.engine, world, self.prefixes)
        self.body = SimBody(self.account, self.engine, self.prefixes, world, self.hear)
        self.homes = Homes()
        self._loop: LlumletLoop | None = None
        """Of `account.llumlet`."""
        self.reports.soon()

    # ------------------------------------------------------------------ from the cluster

    def add(self, request: SimRequest, onward: MoveOrder | None = None) -> None:
        """A request from the front end arrives. `onward`: where it goes with its first token."""
        if not self.account.alive:
            return
        self.account.dispatches_seen += 1
        request.instances.append(self.id)
        comes(self.prefixes, self.engine, request)
        if onward is not None:
            self.homes.told(onward)
            self.engine.watched.add(request.id)
        self.engine.add(request)

    def tell_prefixes(self) -> None:
        """The front end has missed something."""
        if self.account.alive and self.prefixes is not None and not self._reads_later(self.tell_prefixes):
            self._world.prefixes_told(self.id, self.prefixes.everything())

    def receive(self, message: AnyMessage) -> None:
        """A control message arrives."""
        if not self.account.alive:
            return
        if self._reads_later(self.receive, message):
            if isinstance(message, Copy | Commit):
                self.body.arrivals.begin(message)
            return
        if isinstance(message, Prepared | Copied):
            self.body.tell_progress(self._world.request(message.request))
        self.hear(told.Received(self._kernel.now, message))

    def move_out(self, order: MoveOrder) -> None:
        """The scheduler's order arrives."""
        if not self.account.alive or self._reads_later(self.move_out, order):
            return
        all_here = candidates(self.account, self.engine, tells_rest=not self._world.paper_body)
        self.hear(told.MoveOrdered(self._kernel.now, order, all_here))

    def set_draining(self, draining: bool, keep: bool) -> None:
        if self._reads_later(self.set_draining, draining, keep):
            return
        state = InstanceState.DRAINING if draining else InstanceState.RUNNING
        account = self.account
        if account.alive and (account.state, account.drain_keep) != (state, keep):
            account.state, account.drain_keep = state, keep
            self.hear((told.Draining if draining else told.Accepting)(self._kernel.now))
            self.reports.soon()

    def set_role(self, role: Role) -> None:
        """The scheduler's order arrives."""
        if self.account.alive and not self._reads_later(self.set_role, role):
            self.take_role(role)
            self.reports.soon()

    def take_role(self, role: Role) -> None:
        """Where prompts come first, they are not held back for tokens."""
        self.account.role = role
        self.engine.tpot_target_s = 0.0 if role is Role.PREFILL else self._world.tpot_target_s

    def abort(self, name: RequestId) -> None:
        """The front end's order arrives: what is here of the request is freed when the step in flight has ended."""
        if self.account.alive and not self._reads_later(self.abort, name):
            self.engine.steps.at_boundary(partial(self._abort, name))

    def _abort(self, name: RequestId) -> None:
        request = self._world.request(name)
        if request.id != name:
            return  # it goes on under a new one
        if self.engine.abort_now(request) or self.body.gives_up(request):
            self.account.ended += 1
            self.body.ended(request)
            self.homes.forget(name)
            if self._loop is not None:
                self.hear(told.Gone(self._kernel.now, name, "aborted"))
        if request.state is ABORTED:
            self._world.left(request)

    def lose_peer(self, instance: InstanceId) -> None:
        if self._reads_later(self.lose_peer, instance):
            return
        self.homes.lost(instance)
        if self.account.alive and self._loop is not None:
            self.hear(told.PeerLost(self._kernel.now, instance))

    def hang(self, seconds: float) -> None:
        """The engine does nothing for so long, while its process beats (a fault)."""
        self.engine.steps.stall(seconds)
        self.reports.beat()

    def _reads_later(self, action: Callable[..., None], *mail: object) -> bool:
        """The thread that would read it stands still, or is in a step: then `action` follows when it goes on."""
        steps = self.engine.steps
        if steps.stalled_until_s > self._kernel.now:
            self._kernel.at(steps.stalled_until_s, action, *mail)
            return True
        if self._world.reads_between_steps and not steps.idle:
            steps.at_boundary(partial(action, *mail))
            return True
        return False

    def die(self) -> list[SimRequest]:
        """The process is gone at once; nothing more comes from it. Returns the requests that it had, those that
        were on their way out included (a target that has all their blocks may still take them)."""
        self.account.alive = False
        self.reports.stop()
        return self.engine.crash() + self.body.crash()

    def hear(self, event: told.AnyEvent) -> None:
        """Hands an event to the llumlet, and its commands to the body."""
        if not self.account.alive:
            return
        if self._loop is None:
            self.account.llumlet = self._world.new_llumlet(self.id)
            self._loop = LlumletLoop(self.account.llumlet, self.body)
        self._loop.hear(event)

    # ------------------------------------------------------------------ the engine's listener

    def on_changed(self) -> None:
        self.reports.soon()

    def on_queued(self) -> None:
        if self._world.paper_body:
            # Seen at the start of the next step at the earliest.
            self.reports.not_after(self.engine.steps.end_s())
        else:
            self.reports.soon()

    def on_finished(self, request: SimRequest) -> None:
        self.account.ended += 1
        self.body.ended(request)
        self.homes.forget(RequestId(request.id))
        if self._loop is not None:
            self.hear(told.Gone(self._kernel.now, RequestId(request.id), "finished"))
        self._world.finished(request)

    def on_watched(self, request: SimRequest) -> None:
        name = RequestId(request.id)
        if request.state is not PREFILLING:
            self.body.on_watched(request)
        elif name in self.homes:
            self.engine.watched.discard(name)
            here = describe(request, self.account.llumlet, self.engine, tells_rest=True)
            order = self.homes.begins(self._kernel.now, here, self.account.role)
            if order is not None:
                self.hear(order)
