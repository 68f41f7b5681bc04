"""Llumlets with tiny engines and a front end, joined by a link that loses, doubles, delays and reorders.

Every step of the world is one method, chosen by whoever drives it (a test, a random walk, hypothesis). Control messages
wait in `link`, in no order; an instance's token stream and its inbox are reliable and in order until it is killed. Each
client checks that its tokens come once, in order, and made from a right KV cache.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import msgspec
from tiny_engine import Sequence, Spec, State, TinyEngine, Token

from llumnix.config import MigrationConfig
from llumnix.control import commands as do
from llumnix.control import events as ev
from llumnix.control.body import LlumletLoop
from llumnix.control.front_end_events import Abort, Deliver, TellVerdict
from llumnix.control.hearing import Hearing
from llumnix.control.llumlet import Llumlet
from llumnix.control.messages import AnyMessage, AnyNotice, Commit, Copy, Doubt, Message, Prepare
from llumnix.control.orders import MoveCause, MoveId, MoveOrder
from llumnix.control.ownership import Order, Ownership, Replay
from llumnix.policy.victim import CHEAPEST, VictimChoice, VictimQuery, Wanted, choose_victims
from llumnix.types import Epoch, InstanceId, RequestId

LAST_WORD_TIMEOUT_S = 2.0
CONFIG = MigrationConfig(max_stages=3, last_stage_max_blocks=1, max_incoming=2, max_outgoing=2)
HOUR = 3600.0


@dataclass(frozen=True)
class TurnedAway:
    """In a token stream: the engine ends, and had the request still."""

    request: RequestId


@dataclass(frozen=True)
class LastWord:
    """In a token stream: nothing follows."""


Word = tuple[RequestId, list[Token], bool] | AnyNotice | TurnedAway | LastWord
"""A piece of a token stream."""


def cheapest(requests: object, query: VictimQuery) -> VictimChoice:
    return choose_victims(CHEAPEST, requests, query)  # type: ignore[arg-type]


@dataclass
class Reservation:
    blocks: list[int]
    spec: Spec


@dataclass
class PullTask:
    command: do.Pull
    blocks: list[int]
    dropped: bool = False


class Instance:
    """One llumlet and its engine: a body, as small as it can be."""

    def __init__(self, world: World, id: InstanceId, total_blocks: int) -> None:
        self.world = world
        self.id = id
        self.llumlet = Llumlet(id, CONFIG, cheapest, 0.0, validate=True)
        self.engine = TinyEngine(total_blocks)
        self.stream: deque[Word] = deque()
        self.inbox: deque[Spec | RequestId] = deque()
        self.watched: dict[RequestId, None] = {}
        self.pins: dict[tuple[RequestId, Epoch], list[int]] = {}
        self.reservations: dict[tuple[RequestId, Epoch], Reservation] = {}
        self.pulls: list[PullTask] = []
        self.alarm: float | None = None
        self.alive = True
        self.next_fails = False
        self.has_no_adapter_place = False
        self.answers: list[do.AnswerMove] = []
        self.moves_asked = 0
        self.loop = LlumletLoop(self.llumlet, self)

    def handle(self, event: ev.AnyEvent) -> None:
        self.loop.hear(event)

    # talk

    def send(self, command: do.Send) -> None:
        self.world.link.append((command.to, self.filled(command.message)))

    def send_to_front_end(self, command: do.SendToFrontEnd) -> None:
        self.world.link.append((None, command.message))

    def notify(self, command: do.Notify) -> None:
        assert command.request in self.engine.sequences, "nobody knows whose request this was"
        self.stream.append(command.message)

    def answer_move(self, command: do.AnswerMove) -> None:
        self.answers.append(command)

    def wake_at(self, command: do.WakeAt) -> None:
        self.alarm = command.at

    # giving

    def watch(self, command: do.WatchProgress) -> None:
        self.watched[command.request] = None

    def unwatch(self, command: do.Unwatch) -> None:
        del self.watched[command.request]

    def pin(self, command: do.PinBlocks) -> None:
        blocks = self.engine.sequences[command.request].blocks
        pinned = blocks[command.first_block : command.first_block + command.blocks]
        assert len(pinned) == command.blocks, "pins blocks that the request does not have"
        self.engine.hold(pinned)
        assert (command.request, command.epoch) not in self.pins, "pinned twice"
        self.pins[command.request, command.epoch] = pinned

    def unpin(self, command: do.UnpinBlocks) -> None:
        self.engine.let_go(self.pins.pop((command.request, command.epoch)))

    def detach(self, command: do.Detach) -> ev.Detached | None:
        sequence = self.engine.sequences[command.request]
        sequence.state = "detaching" if sequence.state == "running" else "detached"
        return self._detached(sequence) if sequence.state == "detached" else None

    def reattach(self, command: do.Reattach) -> None:
        sequence = self.engine.sequences[command.request]
        sequence.state = "running" if sequence.blocks else "waiting"

    def release(self, command: do.Release) -> None:
        self.engine.remove(command.request)

    def filled(self, message: AnyMessage) -> AnyMessage:
        """What the driver adds to a header."""
        if isinstance(message, Prepare):
            spec = self.engine.sequences[message.request].spec
            return msgspec.structs.replace(message, payload=msgspec.json.encode(spec))
        if isinstance(message, Copy | Commit):
            sequence = self.engine.sequences[message.request]
            ids = tuple(sequence.blocks[message.first_block : message.first_block + message.blocks])
            assert len(ids) == message.blocks, "names blocks that the request does not have"
            if isinstance(message, Copy):
                return msgspec.structs.replace(message, block_ids=ids)
            state = State(sequence.spec, sequence.output_tokens, sequence.computed_tokens, sequence.good)
            return msgspec.structs.replace(message, block_ids=ids, payload=msgspec.json.encode(state))
        return message

    # taking

    def _fails(self) -> bool:
        fails, self.next_fails = self.next_fails, False
        return fails

    def reserve(self, command: do.Reserve) -> ev.Reserved | ev.ReserveFailed:
        at, key = self.world.now, (command.request, command.epoch)
        spec = msgspec.json.decode(command.message.payload, type=Spec)
        blocks = None if command.request in self.engine.sequences else self.engine.allocate(command.blocks)
        if blocks is None or self._fails():
            self.engine.let_go(blocks or [])
            return ev.ReserveFailed(at, *key, "no room", self.has_no_adapter_place)
        skip = min(spec.cached_blocks, command.blocks)
        for index, block in enumerate(blocks[:skip]):
            self.engine.contents[block] = (spec.id, index, 2)
        self.reservations[key] = Reservation(blocks, spec)
        return ev.Reserved(at, *key, skip)

    def pull(self, command: do.Pull) -> ev.PullFailed | None:
        first, count = command.message.first_block, command.message.blocks
        reservation = self.reservations[command.request, command.epoch]
        more = self.engine.allocate(max(0, first + count - len(reservation.blocks)))
        if more is None:
            return ev.PullFailed(self.world.now, command.request, command.epoch, command.stage, "no room")
        reservation.blocks += more
        self.pulls.append(PullTask(command, reservation.blocks[first : first + count]))
        return None

    def pull_ends(self, task: PullTask) -> None:
        """The bytes are what is in the source's blocks now, whoever they belong to now."""
        self.pulls.remove(task)
        message = task.command.message
        source = self.world.instances[message.sender]
        key = (task.command.request, task.command.epoch, task.command.stage)
        if source.alive:
            for here, there in zip(task.blocks, message.block_ids, strict=True):
                self.engine.contents[here] = source.engine.contents[there]
        if task.dropped:
            self.engine.let_go(task.blocks)
        elif not source.alive or self._fails():
            self.handle(ev.PullFailed(self.world.now, *key, "the source is gone"))
        else:
            self.handle(ev.Pulled(self.world.now, *key, len(task.blocks)))

    def install(self, command: do.Install) -> ev.Installed | ev.InstallFailed:
        at, key = self.world.now, (command.request, command.epoch)
        if self._fails():
            return ev.InstallFailed(at, *key, "the engine would not")
        state = msgspec.json.decode(command.message.payload, type=State)
        blocks = self.reservations.pop(key).blocks
        used = command.message.first_block + command.message.blocks
        self.engine.let_go(blocks[used:])
        self.engine.install(state, blocks[:used])
        return ev.Installed(at, *key, state.output_tokens)

    def drop(self, command: do.Drop) -> None:
        reservation = self.reservations.pop((command.request, command.epoch), None)
        blocks = [] if reservation is None else reservation.blocks
        for task in self.pulls:
            if (task.command.request, task.command.epoch) == (command.request, command.epoch):
                task.dropped = True
                blocks = [block for block in blocks if block not in task.blocks]
        self.engine.let_go(blocks)

    # running

    def step(self) -> None:
        """One engine step: a token for everything that decodes, the front of the prefill for the others."""
        for request in list(self.engine.sequences):
            sequence = self.engine.sequences.get(request)
            if sequence is None or sequence.state == "detached":
                continue
            self._advance(request, sequence)
        for request in list(self.watched):
            sequence = self.engine.sequences.get(request)
            if request in self.watched and sequence is not None:
                self.handle(
                    ev.Progress(
                        self.world.now,
                        request,
                        sequence.settled_blocks,
                        len(sequence.blocks),
                        sequence.output_tokens,
                        sequence.decoding,
                        sequence.state == "waiting",
                    )
                )

    def _advance(self, request: RequestId, sequence: Sequence) -> None:
        token = self.engine.advance(request)
        for preempted in self.engine.preempted:
            self.preempted(preempted)
        if token is not None:
            self.stream.append((request, [token], sequence.finished))
            if sequence.finished:
                self.end(request, "finished")
                return
        if sequence.state == "detaching":
            sequence.state = "detached"
            self.handle(self._detached(sequence))

    def _detached(self, sequence: Sequence) -> ev.Detached:
        return ev.Detached(self.world.now, sequence.spec.id, len(sequence.blocks), sequence.output_tokens)

    def preempted(self, request: RequestId) -> None:
        if request in self.watched:
            self.handle(ev.Preempted(self.world.now, request))

    def preempt(self, request: RequestId) -> None:
        self.engine.preempt(request)
        self.preempted(request)

    def end(self, request: RequestId, why: str) -> None:
        self.engine.remove(request)
        self.handle(ev.Gone(self.world.now, request, why))

    def read_inbox(self) -> None:
        item = self.inbox.popleft()
        if isinstance(item, Spec):
            self.engine.add(item)
        elif item in self.engine.sequences:
            self.end(item, "aborted")

    def fire_timer(self) -> None:
        if self.alarm is not None and self.alarm <= self.world.now:
            self.alarm = None
            self.handle(ev.TimerFired(self.world.now))

    def check_blocks(self) -> None:
        """Every block is held exactly as often as somebody has it."""
        expected = [0] * len(self.engine.holders)
        held = [sequence.blocks for sequence in self.engine.sequences.values()]
        held += self.pins.values()
        held += [reservation.blocks for reservation in self.reservations.values()]
        held += [task.blocks for task in self.pulls if task.dropped]
        for blocks in held:
            for block in blocks:
                expected[block] += 1
        assert expected == self.engine.holders, f"{self.id} leaks or shares blocks: {expected} {self.engine.holders}"

    def check_rest(self) -> None:
        """It has given back all that it had."""
        attempts = self.llumlet.attempts
        assert not attempts.sources, f"{self.id} still gives away {sorted(attempts.sources)}"
        assert not attempts.targets, f"{self.id} still takes {sorted(attempts.targets)}"
        assert not self.engine.sequences, f"{self.id} still has {sorted(self.engine.sequences)}"
        assert not self.pins, f"{self.id} still pins {sorted(self.pins)}"
        assert not self.reservations, f"{self.id} still reserves {sorted(self.reservations)}"
        assert not self.watched, f"{self.id} still watches {sorted(self.watched)}"
        assert self.engine.free_blocks == len(self.engine.holders), f"{self.id} lost blocks"


@dataclass
class Client:
    spec: Spec
    """Of the first id; a replay goes on under another."""
    request: RequestId
    first_index: int = 0
    """Of the first token that the present id makes."""
    tokens: list[Token] = field(default_factory=list)
    done: bool = False
    aborted: bool = False
    replays: list[str] = field(default_factory=list)


class World:
    """The instances of the beginning are known to the front end, later ones only once it hears their first report."""

    def __init__(self, instances: int = 3, total_blocks: int = 40) -> None:
        self.now = 0.0
        self.link: list[tuple[InstanceId | None, Message]] = []
        self.total_blocks = total_blocks
        self.instances: dict[InstanceId, Instance] = {}
        self.ownership = Ownership()
        self.hearing: Hearing[Word] = Hearing()
        self.clients: list[Client] = []
        self.by_request: dict[RequestId, Client] = {}
        self.known: set[InstanceId] = set()
        """To the front end, and not ended as far as it knows: those that it can reach."""
        self.reports: list[InstanceId] = []
        """First reports that it has not heard yet."""
        self.news: list[tuple[InstanceId | None, InstanceId, bool]] = []
        """(who, which, expected): ends that somebody (None: the front end) has not heard of yet."""
        self.deadlines: dict[InstanceId, float] = {}
        """Until when the front end waits for the last word of an instance that ended."""
        self.killed = 0
        for _ in range(instances):
            self.start()
            self.introduce(0)

    # what a driver of the world may do

    def start(self) -> None:
        """One more instance: a, b, c, …, z, za, zb, …"""
        count = len(self.instances)
        name = InstanceId("z" * (count // 26) + "abcdefghijklmnopqrstuvwxyz"[count % 26])
        self.instances[name] = Instance(self, name, self.total_blocks)
        self.reports.append(name)

    def introduce(self, place: int) -> None:
        """The front end hears the first report of an instance, which may have ended meanwhile."""
        instance = self.reports.pop(place)
        if instance not in self.ownership.lost and instance not in self.deadlines:
            self.known.add(instance)
            self._meet(instance)

    def _meet(self, instance: InstanceId) -> None:
        for word in self.hearing.introduced(self._index(instance), instance):
            self._take(instance, word)

    def _index(self, instance: InstanceId) -> int:
        return list(self.instances).index(instance)

    def open(self, instance: InstanceId, prompt_tokens: int, max_tokens: int, cached_blocks: int = 0) -> Client:
        name = RequestId(f"r{len(self.clients)}")
        spec = Spec(name, prompt_tokens, 0, max_tokens, min(cached_blocks, (prompt_tokens - 1) // 2))
        client = Client(spec, name)
        self.clients.append(client)
        self._submit(client, spec, instance)
        return client

    def move(
        self,
        source: InstanceId,
        target: InstanceId,
        request: RequestId | None = None,
        count: int = 1,
        to_decode: bool = False,
    ) -> None:
        instance = self.instances[source]
        candidates = tuple(sequence.snapshot() for sequence in instance.engine.sequences.values())
        instance.moves_asked += count if request is None else 1
        order = MoveOrder(
            move_id=MoveId(f"m{instance.moves_asked}"),
            target=target,
            cause=MoveCause.BALANCE,
            reason="balance",
            request=request,
            wanted=Wanted(count=count, room_blocks=1000, to_decode=to_decode),
        )
        instance.handle(ev.MoveOrdered(self.now, order, candidates))

    def deliver(self, place: int, *, keep: bool = False) -> None:
        """Hands over one message of the link; with `keep` it will come a second time."""
        to, message = self.link[place] if keep else self.link.pop(place)
        self.now += 0.001
        if to is None:
            assert isinstance(message, Doubt)
            self.carry_out(self.ownership.doubted(message))
        elif self.instances[to].alive:
            self.instances[to].handle(ev.Received(self.now, message))  # type: ignore[arg-type]

    def read_stream(self, instance: InstanceId) -> None:
        word = self.instances[instance].stream.popleft()
        if self.hearing.says(self._index(instance), word) is not None:
            self._take(instance, word)

    def _take(self, instance: InstanceId, word: Word) -> None:
        match word:
            case LastWord():
                if self.hearing.last_word(instance):
                    self._bury(instance)
            case TurnedAway():
                self.carry_out(self.ownership.turned_away(word.request, instance))
            case Message():
                self.carry_out(self.ownership.notice_arrived(word))
            case (request, tokens, finished):
                self._take_tokens(instance, request, tokens, finished)

    def _take_tokens(self, instance: InstanceId, request: RequestId, tokens: list[Token], finished: bool) -> None:
        outputs = tuple((token, finished and token is tokens[-1]) for token in tokens)
        stream = self.ownership.streams.get(request)
        if stream is not None and stream.live == instance:
            stream.delivered_tokens += len(tokens)
            self.carry_out([Deliver(request, outputs)])
        else:
            self.carry_out(self.ownership.outputs_arrived(request, instance, outputs, len(tokens), finished))

    def abort(self, client: Client) -> None:
        client.aborted = True
        self.carry_out(self.ownership.aborted(client.request))

    def kill(self, instance: InstanceId, unread: int = 0, expected: bool = False) -> None:
        """Of its stream only the next `unread` items still arrive. `expected`: it was to end, and did not in time."""
        dead = self.instances[instance]
        dead.alive = False
        while len(dead.stream) > unread:
            dead.stream.pop()
        self.killed += 1
        if not any(lost == instance for _, lost, _ in self.news) and instance not in self.ownership.lost:
            self.declare_lost(instance, expected)

    def retire(self, instance: InstanceId) -> None:
        """It is told to end: says what it gives up, and then nothing more."""
        ended = self.instances[instance]
        ended.alive = False
        ended.stream += [TurnedAway(request) for request in ended.engine.sequences]
        ended.stream.append(LastWord())
        self.declare_lost(instance, expected=True)

    def declare_lost(self, instance: InstanceId, expected: bool = False) -> None:
        """Everybody will hear that it is gone, whether it is or not."""
        self.news += [(other, instance, expected) for other in (None, *self.instances) if other != instance]

    def hear(self, place: int) -> None:
        who, lost, expected = self.news.pop(place)
        if who is None:
            self._meet(lost)
            self.known.discard(lost)
            if self.hearing.ended(lost, expected):
                self._bury(lost)
            else:
                self.deadlines[lost] = self.now + LAST_WORD_TIMEOUT_S
        elif self.instances[who].alive:
            self.instances[who].handle(ev.PeerLost(self.now, lost))

    def _bury(self, instance: InstanceId) -> None:
        self.deadlines.pop(instance, None)
        self.carry_out(self.ownership.instance_gone(instance, complete=self.hearing.gone(instance)))

    def sleep(self, seconds: float | None = None) -> None:
        """Until the next alarm, or for so long."""
        alarms = [each.alarm for each in self.living if each.alarm is not None] + [*self.deadlines.values()]
        self.now = max(self.now, min(alarms, default=self.now)) if seconds is None else self.now + seconds
        for instance in [each for each, deadline in self.deadlines.items() if deadline <= self.now]:
            self._bury(instance)
        for living in self.living:
            living.fire_timer()

    @property
    def living(self) -> list[Instance]:
        return [instance for instance in self.instances.values() if instance.alive]

    @property
    def undoubted(self) -> list[InstanceId]:
        """Alive, and nobody was told otherwise."""
        doubted = {lost for _, lost, _ in self.news}
        living = [instance.id for instance in self.living]
        return [instance for instance in living if instance not in doubted and instance not in self.ownership.lost]

    @property
    def trusted(self) -> list[InstanceId]:
        """And known to the front end, which may send requests there."""
        return [instance for instance in self.undoubted if instance in self.known]

    # the front end

    def _submit(self, client: Client, spec: Spec, instance: InstanceId) -> None:
        client.request, client.first_index = spec.id, spec.first_index
        self.by_request[spec.id] = client
        self.ownership.opened(spec.id, instance)
        self.instances[instance].inbox.append(spec)

    def carry_out(self, orders: list[Order]) -> None:
        for order in orders:
            match order:
                case Deliver():
                    self._deliver_tokens(self.by_request[order.request], order)
                case TellVerdict():
                    if order.to in self.known:
                        self.link.append((order.to, order.verdict))
                case Abort():
                    if order.to in self.known:
                        self.instances[order.to].inbox.append(order.request)
                case Replay():
                    self._replay(self.by_request[order.stream.request], order)

    def _deliver_tokens(self, client: Client, order: Deliver) -> None:
        assert order.request == client.request, f"tokens of {order.request}, which was replayed as {client.request}"
        assert not client.done, "tokens after the end"
        for token, last in order.outputs:
            assert token.index == len(client.tokens), f"{order.request}: token {token.index} after {len(client.tokens)}"
            assert token.good, f"{order.request}: token {token.index} comes from a broken KV cache"
            client.tokens.append(token)
            client.done = client.done or last
        if client.done:
            self.carry_out(self.ownership.finished(order.request))

    def _replay(self, client: Client, order: Replay) -> None:
        assert not client.done, "replayed after its end"
        assert order.stream.delivered_tokens == len(client.tokens) - client.first_index, "miscounted"
        assert order.asked_for or self.ownership.lost, f"replayed although nobody died: {order.why}"
        client.replays.append(order.why)
        done, old = len(client.tokens), client.spec
        name = RequestId(f"{old.id}.{len(client.replays)}")
        spec = Spec(name, old.prompt_tokens + done, done, old.max_tokens - done, 0)
        self._submit(client, spec, next(each for each in self.instances if each in self.known))

    # what must hold

    def check(self) -> None:
        """After every step."""
        for instance in self.living:
            instance.check_blocks()
        for client in self.clients:
            if client.request in self.ownership.streams:
                owners = self.confirmed_owners(client.request)
                assert len(owners) <= 1, f"{client.request} has owners {owners}"

    def confirmed_owners(self, request: RequestId) -> list[InstanceId]:
        """Instances that would make tokens of it and do not wait for anybody's word."""
        return [
            instance.id
            for instance in self.living
            if instance.id in self.undoubted
            and (sequence := instance.engine.sequences.get(request)) is not None
            and sequence.state != "detached"
            and request not in instance.llumlet.attempts.targets
        ]

    def settle(self, limit: int = 3000) -> None:
        """No more faults: everything must come to its end, within deadlines that add up to much less than an hour."""
        started = self.now
        for _ in range(limit):
            if not self.settle_once():
                break
        else:
            raise AssertionError("never comes to rest")
        assert self.now - started < HOUR, f"took {self.now - started:.0f} s to come to rest"
        self.check_rest()

    def settle_once(self) -> bool:
        busy = False
        while self.reports:
            self.introduce(0)
            busy = True
        while self.news:
            self.hear(0)
            busy = True
        while self.link:
            self.deliver(0)
            busy = True
        for instance in self.instances.values():
            while instance.stream:
                self.read_stream(instance.id)
                busy = True
        for instance in self.living:
            while instance.inbox:
                instance.read_inbox()
                busy = True
            for task in list(instance.pulls):
                instance.pull_ends(task)
                busy = True
            if any(sequence.state != "detached" for sequence in instance.engine.sequences.values()):
                instance.step()
                busy = True
        if not busy and (self.deadlines or any(instance.alarm is not None for instance in self.living)):
            self.sleep()
            return True
        self.sleep(0.02)
        self.check()
        return busy

    def check_rest(self) -> None:
        for client in self.clients:
            if not client.aborted:
                assert client.done, f"{client.request} never ended: {len(client.tokens)} tokens"
                assert len(client.tokens) == client.spec.max_tokens, "ended too early or too late"
        assert not self.ownership.streams, f"streams {sorted(self.ownership.streams)} are left"
        for instance in self.living:
            instance.check_rest()
