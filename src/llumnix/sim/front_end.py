"""The simulated front end: it places requests, and says who owns one when two instances are in doubt.

Twin of the live front end. The `Dispatcher` in here is the live one; requests travel for as long as the profile says.
"""

from __future__ import annotations

from collections.abc import Mapping

from llumnix.control.dispatcher import Dispatcher
from llumnix.control.messages import FRONT_END, NOBODY, AnyNotice, Doubt, Moved, Verdict
from llumnix.policy.dispatch import DispatchRequest
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.sim.engine.request import FINISHED, SimRequest
from llumnix.sim.instance import SimInstance
from llumnix.sim.kernel import Kernel
from llumnix.sim.network import Network
from llumnix.sim.setup import RunSetup, instance_name
from llumnix.types import Epoch, InstanceId, InstanceState, Priority, RequestId


class FrontEnd:
    """Requests by time of arrival go in, `instances` is the cluster as it is."""

    def __init__(
        self,
        requests: list[SimRequest],
        setup: RunSetup,
        kernel: Kernel,
        network: Network,
        instances: Mapping[InstanceId, SimInstance],
    ) -> None:
        self.by_id = {request.id: request for request in requests}
        self._requests = requests
        self._setup = setup
        self._kernel = kernel
        self._network = network
        self._instances = instances
        self._dispatcher = Dispatcher(setup.policy)
        self._next_arrival = 0
        self._unplaced: list[SimRequest] = []
        self._admitted: set[InstanceId] = set()
        self._strangers: dict[InstanceId, InstanceSnapshot] = {}
        """Last report of those that are not admitted yet."""
        self._fenced: set[tuple[RequestId, Epoch]] = set()

    # ------------------------------------------------------------------ placing requests

    def start(self) -> None:
        """The first request arrives at its time, and each one announces the next."""
        self._kernel.at(self._requests[0].arrival_s, self._arrive)

    def _arrive(self) -> None:
        request = self._requests[self._next_arrival]
        self._next_arrival += 1
        if self._next_arrival < len(self._requests):
            self._kernel.at(self._requests[self._next_arrival].arrival_s, self._arrive)
        self.dispatch(request)

    def dispatch(self, request: SimRequest) -> None:
        """Sends a request to the instance that the policy chooses; it waits here as long as there is none."""
        delay = self._setup.profile.host.request_ms / 1e3 + self._network.message_s
        if self._setup.place_on is not None:
            self._kernel.after(delay, self._hand_in, request, instance_name(self._setup.place_on))
            return
        decision = self._dispatcher.dispatch(
            DispatchRequest(RequestId(request.id), request.tokens, Priority(request.priority))
        )
        if decision is None:
            self._unplaced.append(request)
            return
        if self._setup.paper_body:
            self._dispatcher.forget(decision.request, decision.instance)
        self._kernel.after(delay, self._hand_in, request, decision.instance)

    def replay(self, request: SimRequest) -> None:
        """Starts a request anew elsewhere, with the tokens so far."""
        request.replays += 1
        self.dispatch(request)

    def drive_out(self, instance: InstanceId) -> int:
        """Starts what is on a draining instance anew elsewhere; returns how many. What is being handed over stays, and
        everything if there is no other place."""
        there = self._instances.get(instance)
        others = (
            one for one in self._instances.values() if one is not there and one.account.state is InstanceState.RUNNING
        )
        return 0 if there is None or next(others, None) is None else there.abort_all(self.replay)

    def _hand_in(self, request: SimRequest, instance: InstanceId) -> None:
        target = self._instances.get(instance)
        if target is None:
            # It died while the request was under way.
            self.dispatch(request)
        else:
            target.add(request)

    def admit(self, instance: InstanceId) -> None:
        """It answered the front end's greeting: from now on requests are sent there."""
        self._admitted.add(instance)
        snapshot = self._strangers.pop(instance, None)
        if snapshot is not None:
            self.on_report(snapshot)

    def on_report(self, snapshot: InstanceSnapshot) -> None:
        if snapshot.id not in self._admitted:
            self._strangers[snapshot.id] = snapshot
            return
        self._dispatcher.on_report(snapshot, self._kernel.now)
        if self._unplaced:
            waiting, self._unplaced = self._unplaced, []
            for request in waiting:
                self.dispatch(request)

    def on_removed(self, instance: InstanceId) -> None:
        self._strangers.pop(instance, None)
        self._dispatcher.on_removed(instance)

    # ------------------------------------------------------------------ whose request it is

    def ask(self, doubt: Doubt) -> None:
        self._network.deliver(self._judge, doubt)

    def _judge(self, doubt: Doubt) -> None:
        """The front end's verdict. It knows who has the request; a source that still holds it keeps it."""
        request = self.by_id[doubt.request]
        holder = InstanceId(request.instances[-1])
        key = (doubt.request, doubt.epoch)
        over = request.state is FINISHED or holder not in (doubt.sender, doubt.target)
        owner = NOBODY if over else holder
        if owner == doubt.sender != doubt.target:
            self._fenced.add(key)
        verdict = Verdict(request=doubt.request, epoch=doubt.epoch, sender=FRONT_END, owner=owner)
        for end in {doubt.sender: None, doubt.target: None}:
            self._post(end, verdict)

    def noticed(self, notice: AnyNotice) -> None:
        if isinstance(notice, Moved):
            verdict = Verdict(request=notice.request, epoch=notice.epoch, sender=FRONT_END, owner=notice.target)
            self._network.deliver(self._post, notice.target, verdict)

    def is_fenced(self, request: RequestId, epoch: Epoch) -> bool:
        return (request, epoch) in self._fenced

    def _post(self, to: InstanceId, verdict: Verdict) -> None:
        receiver = self._instances.get(to)
        if receiver is not None:
            self._network.deliver(receiver.receive, verdict)
