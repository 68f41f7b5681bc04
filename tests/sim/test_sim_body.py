"""The simulated body: engines by arithmetic."""

from __future__ import annotations

import itertools

import pytest

from body_contract import EPOCH, BodyContract, Commander
from llumnix.config import ClusterConfig
from llumnix.control import commands as do
from llumnix.control import events as told
from llumnix.control import messages as say
from llumnix.control.llumlet import Llumlet
from llumnix.control.messages import AnyMessage, AnyNotice, Doubt
from llumnix.control.orders import MoveOutcome
from llumnix.control.prefix_table import PrefixNews
from llumnix.policy.snapshot import InstanceSnapshot, StepCost
from llumnix.sim.engine.request import SimRequest
from llumnix.sim.engine.vllm1 import TokenBudget
from llumnix.sim.instance import SimInstance
from llumnix.sim.kernel import Kernel
from llumnix.sim.network import CopyEnded
from llumnix.sim.profiles.cost_model import step_cost
from llumnix.sim.profiles.file import load_profile
from llumnix.types import Epoch, InstanceId, RequestId


class TestWorld:
    """As much of a cluster as two instances need; what travels, arrives when the test says so."""

    __test__ = False
    size = 2
    paper_body = looks_each_step = reads_between_steps = False
    tpot_target_s = 0.0
    relief_steps = 0

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.profile = load_profile("a10-llama-7b").with_scheduler(kind="vllm-1")
        self.cluster = ClusterConfig()
        self.commanders: dict[InstanceId, Commander] = {}
        self.requests: dict[RequestId, SimRequest] = {}
        self.letters: list[tuple[InstanceId, AnyMessage]] = []
        self.copies: list[CopyEnded] = []
        self.notices: list[tuple[AnyNotice, int]] = []
        """With the tokens that had gone out before."""
        self.lost: set[InstanceId] = set()
        self.aborted: list[str] = []

    def step_cost(self, instance: InstanceId) -> StepCost:
        return step_cost(self.profile)

    def new_llumlet(self, instance: InstanceId) -> Llumlet:
        return self.commanders[instance]  # type: ignore[return-value]

    def request(self, request: RequestId) -> SimRequest:
        return self.requests[request]

    def send(self, to: InstanceId, message: AnyMessage) -> None:
        self.letters.append((to, message))

    def ask_front_end(self, doubt: Doubt) -> None: ...

    def noticed(self, notice: AnyNotice) -> None:
        self.notices.append((notice, self.requests[notice.request].generated))

    def is_fenced(self, request: RequestId, epoch: Epoch) -> bool:
        return False

    def move_answered(self, outcome: MoveOutcome) -> None: ...

    def copy(self, source: InstanceId, target: InstanceId, blocks: int, done: CopyEnded) -> bool:
        if source not in self.lost:
            self.copies.append(done)
        return source not in self.lost

    def prefixes_told(self, instance: InstanceId, news: PrefixNews) -> None: ...
    def reported(self, snapshot: InstanceSnapshot, late_s: float) -> None: ...
    def finished(self, request: SimRequest) -> None: ...

    def left(self, request: SimRequest) -> None:
        self.aborted.append(request.id)


class SimEnd:
    def __init__(self, world: TestWorld, id: InstanceId) -> None:
        self.id = id
        self.commander = world.commanders[id] = Commander()
        self.instance = SimInstance(id, world, TokenBudget())
        self._world = world
        self._numbers = itertools.count()
        self._made: dict[RequestId, int] = {}

    @property
    def free_blocks(self) -> int:
        return self.instance.engine.free_blocks()

    def tick(self) -> None:
        self.instance.hear(told.TimerFired(self._world.kernel.now))

    def queue(self) -> RequestId:
        """It takes the place of one that is computed now and does not go away."""
        engine = self.instance.engine
        stays = SimRequest(-1, 0.0, 640, 1000, id="first")
        if engine.steps.idle:
            engine.add(stays)
        return self._add(30)

    def _add(self, tokens: int) -> RequestId:
        number = next(self._numbers)
        request = SimRequest(number, float(number), 48, tokens, id=f"{self.id}-{number}")
        self._world.requests[RequestId(request.id)] = request
        self.instance.add(request)
        return RequestId(request.id)

    def admit(self, tokens: int = 30) -> RequestId:
        name = self._add(tokens)
        self.step()
        return name

    def step(self) -> None:
        """To the end of the one in flight, and into the next."""
        through: list[bool] = []
        self.instance.engine.steps.at_boundary(lambda: through.append(True))
        while not through:
            self._world.kernel.run(self._world.kernel.now + 0.001)

    def abort(self, request: RequestId) -> None:
        self.instance.abort(request)
        while request not in self._world.aborted:
            self._world.kernel.run(self._world.kernel.now + 0.001)

    def preempt(self, request: RequestId) -> None:
        engine = self.instance.engine
        engine.steps.at_boundary(lambda: engine.preempt(self._world.requests[request]))

    def tokens(self, request: RequestId) -> int:
        is_here = self._world.requests[request].instances[-1] == self.id
        if is_here:
            self._made[request] = self.instance.engine.generated_of(self._world.requests[request])
        return self._made.get(request, 0)

    def tokens_before(self, notice: type[AnyNotice]) -> int | None:
        return next((tokens for told, tokens in self._world.notices if isinstance(told, notice)), None)


class SimPair:
    def __init__(self) -> None:
        self._world = TestWorld()
        self.source, self.target = (SimEnd(self._world, InstanceId(name)) for name in ("i0", "i1"))

    def deliver(self) -> None:
        letters, self._world.letters = self._world.letters, []
        for to, message in letters:
            (self.source if to == self.source.id else self.target).instance.receive(message)

    def end_copies(self) -> None:
        copies, self._world.copies = self._world.copies, []
        for done in copies:
            done(None)

    def lose_source(self) -> None:
        self._world.lost.add(self.source.id)

    def pass_time(self, seconds: float) -> None:
        self._world.kernel.run(self._world.kernel.now + seconds)

    @property
    def wrong(self) -> list[str]:
        """It has no tokens, only their number."""
        return []


class TestSimBody(BodyContract):
    @pytest.fixture
    def pair(self) -> SimPair:
        return SimPair()


@pytest.fixture
def between_steps() -> SimPair:
    """Mail waits for the end of the step in flight, and at the target there is one."""
    pair = SimPair()
    pair._world.reads_between_steps = True
    pair.target.admit(tokens=1000)
    return pair


def reserve(pair: SimPair, blocks: int) -> RequestId:
    moves = pair.source.admit()
    prepare = say.Prepare(request=moves, epoch=EPOCH, sender=pair.source.id, blocks=blocks)
    answer = pair.target.instance.body.reserve(do.Reserve(moves, EPOCH, blocks, prepare))
    assert isinstance(answer, told.Reserved)
    return moves


def copy_of(pair: SimPair, request: RequestId, blocks: int, first_block: int = 0) -> say.Copy:
    return say.Copy(
        request=request, epoch=EPOCH, sender=pair.source.id, stage=1, first_block=first_block, blocks=blocks
    )


def arrives(pair: SimPair, copy: say.Copy) -> None:
    """The llumlet asks for what it names, once it is read."""
    pair.target.commander.reply = lambda arrived: do.Pull(copy.request, EPOCH, 1, copy)
    pair.target.instance.receive(copy)


def pulled(pair: SimPair) -> list[told.Pulled]:
    return [event for event in pair.target.commander.heard if isinstance(event, told.Pulled)]


@pytest.mark.parametrize("ends_in_step", [True, False])
def test_blocks_are_read_while_the_target_is_in_a_step(between_steps: SimPair, ends_in_step: bool) -> None:
    pair = between_steps
    copy = copy_of(pair, reserve(pair, 2), blocks=2)
    arrives(pair, copy)
    assert len(pair._world.copies) == 1
    if ends_in_step:
        pair.end_copies()
        assert pulled(pair) == [], "nobody has asked for it yet"
    pair.target.step()
    assert len(pair._world.copies) == (0 if ends_in_step else 1), "it is read once"
    pair.end_copies()
    assert [event.stage for event in pulled(pair)] == [1]


@pytest.mark.parametrize(
    ("blocks", "first_block"), [pytest.param(4, 0, id="more than was reserved"), pytest.param(1, 1, id="with a gap")]
)
def test_what_does_not_fit_waits_for_the_end_of_the_step(between_steps: SimPair, blocks: int, first_block: int) -> None:
    pair = between_steps
    copy = copy_of(pair, reserve(pair, 2), blocks, first_block)
    arrives(pair, copy)
    assert pair._world.copies == []
    pair.target.step()
    assert len(pair._world.copies) == 1


def test_room_of_one_that_is_called_off_while_blocks_come_is_free_when_they_have(between_steps: SimPair) -> None:
    pair = between_steps
    before = pair.target.free_blocks
    moves = reserve(pair, 2)
    arrives(pair, copy_of(pair, moves, blocks=2))
    pair.target.instance.body.drop(do.Drop(moves, EPOCH))
    assert pair.target.free_blocks == before - 2
    pair.end_copies()
    assert pair.target.free_blocks == before
