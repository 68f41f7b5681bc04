"""A front end of the joined model: the machine that serves, carried out as `engine/vllm/front_end` does it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, assert_never

from cluster_instance import Hello, Introduction, NotTaken
from migration_pair import LAST_WORD_TIMEOUT_S, LastWord, TurnedAway
from tiny_engine import Spec, Token

from llumnix.config import PolicyConfig
from llumnix.control import front_end_events as fe
from llumnix.control.front_end import FrontEndMachine
from llumnix.control.hearing import Hearing
from llumnix.control.messages import Doubt, Message
from llumnix.control.scheduler_events import AskWhereCached, ReplayRest
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, RequestId

if TYPE_CHECKING:
    from cluster_world import Cluster

PROMISED = ("No instance can take the request now", "the stream cannot be continued exactly", "token replay failed")
"""What a client may be told instead of its tokens."""


@dataclass
class ClientStream:
    spec: Spec
    """As it was asked for."""
    front_end: tuple[int, int]
    seeded: bool
    request: RequestId
    """Its present name in the engines."""
    tokens: list[Token] = field(default_factory=list)
    done: bool = False
    left: bool = False
    """The client went away, or its front end did."""
    refused: str = ""
    replays: list[str] = field(default_factory=list)
    parks: int = 0

    @property
    def over(self) -> bool:
        return self.done or self.left or bool(self.refused)


class ModelFrontEnd:
    def __init__(self, world: Cluster, index: int, incarnation: int) -> None:
        self.world = world
        self.index, self.incarnation = index, incarnation
        self.machine = FrontEndMachine(PolicyConfig(), index)
        self.hearing: Hearing[Any] = Hearing()
        self.known: set[InstanceId] = set()
        self.members: set[InstanceId] = set()
        self.gone: set[InstanceId] = set()
        self.latest: dict[InstanceId, InstanceSnapshot] = {}
        self.deadlines: dict[InstanceId, float] = {}
        self.clients: dict[RequestId, ClientStream] = {}
        self.sent: dict[InstanceId, int] = {}
        """Requests that each member has got, or will get, from front ends of this index."""

    # clients

    def open(self, prompt_tokens: int, max_tokens: int, *, seeded: bool, may_wait: bool) -> ClientStream:
        name = RequestId(f"f{self.index}.{self.incarnation}-r{len(self.world.clients)}")
        spec = Spec(name, prompt_tokens, 0, max_tokens, 0)
        client = ClientStream(spec, (self.index, self.incarnation), seeded, name)
        self.world.clients.append(client)
        self.clients[name] = client
        not_exact = "its seed" if seeded else ""
        self.tell(fe.Arrived(self.world.now, name, prompt_tokens, not_exact=not_exact, may_wait=may_wait))
        return client

    def abort(self, client: ClientStream) -> None:
        client.left = True
        del self.clients[client.request]
        self.tell(fe.Aborted(self.world.now, client.request))

    # news and mail

    def on_report(self, snapshot: InstanceSnapshot) -> None:
        instance = snapshot.id
        if instance in self.known:
            if snapshot.seq > self.latest[instance].seq:
                self.latest[instance] = snapshot
            if instance in self.members:
                self.tell(fe.Reported(self.world.now, snapshot))
        elif instance not in self.gone:
            self.known.add(instance)
            self.latest[instance] = snapshot
            self._meet(instance)
            self.world.instances[instance].inbox.append(Hello(self.index, self.incarnation))

    def on_gone(self, instance: InstanceId, expected: bool) -> None:
        self.gone.add(instance)
        self._meet(instance)
        self.known.discard(instance)
        self.members.discard(instance)
        self.tell(fe.Closed(self.world.now, instance))
        if self.hearing.ended(instance, expected):
            self._bury(instance)
        else:
            self.deadlines[instance] = self.world.now + LAST_WORD_TIMEOUT_S

    def on_mail(self, mail: Doubt | AskWhereCached | ReplayRest) -> None:
        match mail:
            case Doubt():
                self.tell(fe.Doubted(self.world.now, mail))
            case AskWhereCached():
                raise AssertionError("no instance here tells of its prefixes")
            case ReplayRest():
                self.tell(fe.DriveOut(self.world.now, mail.instance, mail.reason))
            case _:
                assert_never(mail)

    def wake(self) -> None:
        for instance in [each for each, deadline_s in self.deadlines.items() if deadline_s <= self.world.now]:
            self._bury(instance)

    def _bury(self, instance: InstanceId) -> None:
        self.deadlines.pop(instance, None)
        complete = self.hearing.gone(instance)
        self.tell(fe.Departed(self.world.now, instance, complete))

    def _meet(self, instance: InstanceId) -> None:
        for word in self.hearing.introduced(self.world.instances[instance].index, instance):
            self._take(instance, word)

    # token streams

    def read(self, instance: InstanceId) -> None:
        there = self.world.instances[instance]
        word = there.streams.to[self.index].popleft()
        if self.hearing.says(there.index, word) is not None:
            self._take(instance, word)

    def _take(self, instance: InstanceId, word: Any) -> None:
        now = self.world.now
        match word:
            case LastWord():
                if self.hearing.last_word(instance):
                    self._bury(instance)
            case Introduction():
                if word.incarnation == self.incarnation and instance in self.known:
                    self.members.add(instance)
                    self.sent[instance] = word.snapshot.dispatches_seen[self.index]
                    self.tell(fe.Reported(now, word.snapshot))
                    self.tell(fe.Reported(now, self.latest[instance]))
            case TurnedAway():
                self.tell(fe.TurnedAway(now, instance, word.request))
            case NotTaken():
                self.tell(fe.Broken(now, word.request, "token replay failed: the engine would not"))
            case Message():
                self.tell(fe.Noticed(now, word))  # type: ignore[arg-type]
            case (request, tokens, finished):
                self._take_tokens(instance, request, tokens, finished)

    def _take_tokens(self, instance: InstanceId, request: RequestId, tokens: list[Token], finished: bool) -> None:
        outputs = tuple((token, finished and token is tokens[-1]) for token in tokens)
        stream = self.machine.stream(request)
        if stream is not None and stream.live == instance:
            stream.delivered_tokens += len(tokens)
            self._deliver(request, outputs)
        else:
            self.tell(fe.Outputs(self.world.now, instance, request, len(tokens), outputs, finished))

    # what the machine wants

    def tell(self, event: fe.FrontEndEvent) -> None:
        for command in self.machine.handle(event):
            self._obey(command)

    def _obey(self, command: fe.FrontEndCommand) -> None:
        match command:
            case fe.Deliver():
                self._deliver(command.request, command.outputs)
            case fe.TellVerdict():
                if command.to in self.known:
                    self.world.post(command.to, command.verdict)
            case fe.Abort():
                self._send(command.to, command.request)
            case fe.SendTo():
                if command.onward is not None:
                    self.world.post(command.instance, command.onward)
                self._send(command.instance, self.clients[command.request].spec)
            case fe.ReplayAt():
                self._replay(command)
            case fe.GiveUp():
                client = self.clients.pop(command.request)
                assert any(promise in command.why for promise in PROMISED), command.why
                client.refused = command.why
            case fe.Park():
                self.clients[command.request].parks += 1
            case fe.DroveOut():
                self.world.post("scheduler", command)
            case fe.AskPrefixes():
                raise AssertionError("no instance here tells of prefixes")
            case _:
                assert_never(command)

    def _send(self, instance: InstanceId, what: Spec | RequestId) -> None:
        if isinstance(what, Spec):
            self.sent[instance] += 1
        if instance in self.known:
            self.world.instances[instance].inbox.append(what)

    def check(self) -> None:
        """What is charged is what is on its way, by the last report."""
        entries = self.machine.dispatcher._entries
        for instance in (
            self.members & entries.keys()
        ):  # one that turned a request away is closed before its end is heard
            counted = entries[instance].reported.dispatches_seen[self.index]
            charged, on_its_way = len(entries[instance].under_way), self.sent[instance] - counted
            assert charged == on_its_way, f"{instance} is charged {charged} requests, {on_its_way} are on their way"

    def _deliver(self, request: RequestId, outputs: tuple[object, ...]) -> None:
        client = self.clients[request]
        assert client.request == request, f"tokens of {request}, which goes on as {client.request}"
        for token, last in outputs:  # type: ignore[misc]
            assert not client.done, "tokens after the end"
            assert token.index == len(client.tokens), f"{request}: token {token.index} after {len(client.tokens)}"  # type: ignore[has-type]
            assert token.good, f"{request}: token {token.index} comes from a broken KV cache"  # type: ignore[has-type]
            client.tokens.append(token)  # type: ignore[has-type]
            client.done = bool(last)  # type: ignore[has-type]
        if client.done:
            del self.clients[request]
            self.tell(fe.Finished(self.world.now, request))

    def _replay(self, command: fe.ReplayAt) -> None:
        client = self.clients.pop(command.request)
        done, asked = len(client.tokens), client.spec
        assert command.delivered_tokens == done, "miscounted"
        assert not (client.seeded and done), "what cannot be continued exactly was"
        assert command.new_id not in self.world.names, f"{command.new_id} was used before"
        self.world.names.add(command.new_id)
        client.request = command.new_id
        client.replays.append(command.why)
        self.clients[command.new_id] = client
        spec = Spec(command.new_id, asked.prompt_tokens + done, done, asked.max_tokens - done, 0)
        self._send(command.instance, spec)
