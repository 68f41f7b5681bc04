"""The body of the simulated front end: when requests arrive, and how long what its mind decides is on its way.

Its mind is the one that serves live (`control/front_end.py`). Two things are simpler than live. A simulated request is
one thing, wherever it is: tokens reach the client as they are made, so they are counted only where somebody asks; a
target's `Adopted` is heard at once; and a request that was replayed while its old instance lives begins anew when it
has left there. And clients never go away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import assert_never

from llumnix.control import front_end_events as fe
from llumnix.control.messages import Adopted, AnyNotice, Doubt
from llumnix.control.openings import DispatchOpenings
from llumnix.control.orders import MoveOrder
from llumnix.control.prefix_table import PrefixNews
from llumnix.control.replay import FrontEndBegin
from llumnix.journal.journal import Journal
from llumnix.journal.story import Story
from llumnix.policy.classes import Declined
from llumnix.policy.prefix import MOST_CHUNKS
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.recording import recorder
from llumnix.sim.engine.request import ABORTED, FINISHED, NEW, SimRequest
from llumnix.sim.instance import SimInstance
from llumnix.sim.kernel import Kernel
from llumnix.sim.network import Network
from llumnix.sim.reception import Reception
from llumnix.sim.setup import RunSetup, instance_name
from llumnix.types import Epoch, InstanceId, Priority, RequestId

_ALL = ("all that was held",)


class SimFrontEnd:
    """Requests by time of arrival go in, `instances` is the cluster as it is; `over` is told of each request that the
    client has to its end."""

    def __init__(
        self,
        requests: list[SimRequest],
        setup: RunSetup,
        kernel: Kernel,
        network: Network,
        instances: Mapping[InstanceId, SimInstance],
        over: Callable[[], None],
    ) -> None:
        self.journal: Journal | None = None
        """Of what happens to requests, if anybody wants to know."""
        self.by_id: dict[str, SimRequest] = {request.id: request for request in requests}
        """By the ids that they have and had."""
        self._requests = requests
        self._request_s = setup.profile.host.request_ms / 1e3
        self._only_on = None if setup.place_on is None else (instance_name(setup.place_on),)
        self._kernel = kernel
        self._network = network
        self._instances = instances
        self._one_over = over
        begin = FrontEndBegin(policy=setup.policy, ledger=not setup.paper_body)
        self._machine = begin.make(recorder("front-end", begin))
        self._reception = None
        if setup.classes is not None:
            openings = DispatchOpenings(self._machine)
            self._reception = Reception(setup.classes, kernel, openings, self._open, over)
        self._next_arrival = 0
        self._leaving: dict[SimRequest, fe.ReplayAt] = {}
        """Those that are to begin anew when they have left where they are."""
        self._admitted: set[InstanceId] = set()
        self._strangers: dict[InstanceId, InstanceSnapshot] = {}
        """Last report of those that are not admitted yet."""

    # ------------------------------------------------------------------ what happens

    def start(self) -> None:
        """The first request arrives at its time, and each one announces the next."""
        self._kernel.at(self._requests[0].arrival_s, self._arrive)

    def _arrive(self) -> None:
        request = self._requests[self._next_arrival]
        self._next_arrival += 1
        if self._next_arrival < len(self._requests):
            self._kernel.at(self._requests[self._next_arrival].arrival_s, self._arrive)
        if self.journal is not None:
            arrived = self._kernel.now, request.client_id, request.id, request.prompt_tokens
            request.story = Story(self.journal, *arrived)
        refused = request.declined is not None  # for what it asks, whoever serves
        if self._reception is not None and (refused or self._machine.dispatcher.serving):
            self._reception.arrives(request, self._arrived(request))
        else:
            self._open(request)

    def _open(self, request: SimRequest) -> None:
        (answer,) = self._machine.handle(self._arrived(request))
        if isinstance(answer, fe.GiveUp):
            request.decline(self._kernel.now, Declined(503, "service_unavailable", answer.why))
            self._one_over()
        else:
            self._obey([answer])

    def _arrived(self, request: SimRequest) -> fe.Arrived:
        return fe.Arrived(
            self._kernel.now,
            RequestId(request.id),
            request.prompt_tokens,
            Priority(request.priority),
            self._only_on,
            chunks=request.hashes[:MOST_CHUNKS] if self._machine.prefix_chunk_tokens else (),
        )

    def _over(self, request: SimRequest, outcome: str, why: str = "") -> None:
        """Its client has it to its end."""
        if request.story is not None:
            request.tell_move(self._kernel.now, None)
            request.story.ended(self._kernel.now, outcome, request.generated, why)
        if self._reception is not None:
            self._reception.ended(request)
        self._one_over()

    def finished(self, request: SimRequest) -> None:
        """An engine made its last token."""
        name = RequestId(request.id)
        stream = self._machine.stream(name)
        if stream is not None and stream.live is not None and request.is_on(stream.live):
            self._tell(fe.Finished(self._kernel.now, name))
            self._over(request, "length")
        elif stream is not None:
            held = request.generated - stream.delivered_tokens
            self._tell(fe.Outputs(self._kernel.now, InstanceId(request.instances[-1]), name, held, _ALL, last=True))
        else:
            self.left(request)

    def left(self, request: SimRequest) -> None:
        """It is in no engine any more."""
        command = self._leaving.pop(request, None)
        if command is not None:
            self._begin_anew(request, command)

    def admit(self, instance: InstanceId) -> None:
        """It answered the front end's greeting: from now on requests are sent there."""
        self._admitted.add(instance)
        snapshot = self._strangers.pop(instance, None)
        if snapshot is not None:
            self.on_report(snapshot)

    def on_report(self, snapshot: InstanceSnapshot) -> None:
        if snapshot.id not in self._admitted:
            self._strangers[snapshot.id] = snapshot
        else:
            self._tell(fe.Reported(self._kernel.now, snapshot))
            if self._reception is not None:
                self._reception.call()

    def on_prefixes(self, instance: InstanceId, news: PrefixNews) -> None:
        if instance in self._instances:
            self._tell(fe.PrefixesTold(self._kernel.now, instance, news))

    def on_removed(self, instance: InstanceId) -> None:
        self._strangers.pop(instance, None)
        self._tell(fe.Closed(self._kernel.now, instance))

    def on_departed(self, instance: InstanceId) -> None:
        self._tell_with_counts(fe.Departed(self._kernel.now, instance))

    def where_cached(self, instance: InstanceId) -> dict[RequestId, InstanceId]:
        return self._machine.where_cached(instance)

    def drive_out(self, instance: InstanceId, why: str) -> int:
        """Starts what is on a draining instance anew elsewhere; returns how many requests that were."""
        event = fe.DriveOut(self._kernel.now, instance, why)
        self._count(event)
        *commands, answer = self._machine.handle(event)
        assert isinstance(answer, fe.DroveOut)
        self._obey(commands)
        return answer.count

    def ask(self, doubt: Doubt) -> None:
        self._network.deliver(lambda: self._tell(fe.Doubted(self._kernel.now, doubt)))

    def noticed(self, notice: AnyNotice) -> None:
        if not isinstance(notice, Adopted):
            self._network.deliver(self._take_notice, notice)
            return
        # Its source has said all that it had to say.
        self._machine.counted({notice.request: notice.output_tokens})
        self._take_notice(notice)

    def _take_notice(self, notice: AnyNotice) -> None:
        self._tell_with_counts(fe.Noticed(self._kernel.now, notice))

    # ------------------------------------------------------------------ what is asked

    @property
    def held(self) -> tuple[int, int]:
        """Requests that wait for their turn and that more instances could serve, and the tokens of their prompts."""
        room = None if self._reception is None else self._reception.room
        return (0, 0) if room is None else room.demand

    def is_fenced(self, request: RequestId, epoch: Epoch) -> bool:
        """What an instance has of this attempt is of no account."""
        stream = self._machine.stream(request)
        return stream is None or epoch <= stream.decided

    def _tell_with_counts(self, event: fe.FrontEndEvent) -> None:
        self._count(event)
        self._tell(event)

    def _count(self, event: fe.FrontEndEvent) -> None:
        """The tokens of the streams that the answer depends on, where their owner has the request."""
        delivered: dict[RequestId, int] = {}
        for stream in self._machine.concerned(event):
            request = self.by_id[stream.request]
            if stream.live is not None and request.id == stream.request and request.is_on(stream.live):
                there = self._instances.get(stream.live)
                generated = request.generated if there is None else there.engine.generated_of(request)
                delivered[stream.request] = generated
        self._machine.counted(delivered)

    # ------------------------------------------------------------------ what is decided

    def _tell(self, event: fe.FrontEndEvent) -> None:
        commands = self._machine.handle(event)
        if commands:
            self._obey(commands)

    def _obey(self, commands: list[fe.FrontEndCommand]) -> None:
        for command in commands:
            match command:
                case fe.SendTo():
                    request = self.by_id[command.request]
                    if request.story is not None:
                        request.story.dispatched(self._kernel.now, command.reason)
                    self._send(request, command.instance, command.onward)
                case fe.ReplayAt():
                    self._replay(self.by_id[command.request], command)
                case fe.Abort():
                    self._network.deliver(self._abort, command)
                case fe.TellVerdict() | fe.AskPrefixes():
                    self._post(command)
                case fe.Deliver():
                    self._over(self.by_id[command.request], "length")
                case fe.GiveUp():
                    self._over(self.by_id[command.request], "error", command.why)
                case fe.Park():
                    parked = self.by_id[command.request]
                    if parked.story is not None:
                        parked.story.parked(self._kernel.now, command.why, self._last_token_s(parked))
                case fe.DroveOut():
                    raise AssertionError(f"nobody asked for {command}")
                case _:
                    assert_never(command)

    def _send(self, request: SimRequest, instance: InstanceId, onward: MoveOrder | None = None) -> None:
        way_s = self._request_s + self._network.message_s
        self._kernel.after(way_s, self._hand_in, request, request.id, instance, onward)

    def _hand_in(self, request: SimRequest, name: str, instance: InstanceId, onward: MoveOrder | None) -> None:
        there = self._instances.get(instance)
        if there is not None and request.id == name:  # else it died meanwhile, or is to begin anew
            there.add(request, onward)

    def _replay(self, request: SimRequest, command: fe.ReplayAt) -> None:
        request.replays += 1
        self.by_id[command.new_id] = request
        if request.story is not None:
            facts = command.reason, command.why, command.delivered_tokens, self._last_token_s(request)
            request.story.replayed(self._kernel.now, *facts)
        in_an_engine = request.state not in (NEW, ABORTED, FINISHED)
        if in_an_engine and request.instances[-1] in self._instances:
            self._leaving[request] = command
        else:
            self._begin_anew(request, command)

    def _last_token_s(self, request: SimRequest) -> float | None:
        """Of one that is in no batch any more; None if that is not known."""
        return request.last_token_s if request.batch is None and request.last_token_s < inf else None

    def _begin_anew(self, request: SimRequest, command: fe.ReplayAt) -> None:
        """What the client has not got is lost."""
        request.id, request.state, request.generated = command.new_id, NEW, command.delivered_tokens
        self._send(request, command.instance)

    def _abort(self, command: fe.Abort) -> None:
        there = self._instances.get(command.to)
        if there is not None:
            there.abort(command.request)

    def _post(self, command: fe.TellVerdict | fe.AskPrefixes) -> None:
        receiver = self._instances.get(command.to)
        if receiver is None:
            return
        if isinstance(command, fe.TellVerdict):
            self._network.deliver(receiver.receive, command.verdict)
        else:
            self._network.deliver(receiver.tell_prefixes)
