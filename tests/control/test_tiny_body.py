"""The body of the tests: tiny engines."""

from __future__ import annotations

import itertools

import pytest
from migration_pair import Instance, World
from tiny_engine import Spec

from body_contract import BodyContract, Commander
from llumnix.control import events as told
from llumnix.control.messages import AnyNotice
from llumnix.types import InstanceId, RequestId


class TinyEnd:
    def __init__(self, world: World, id: InstanceId) -> None:
        self.id = id
        self.commander = Commander()
        self.instance: Instance = world.instances[id]
        self.instance.loop.llumlet = self.commander  # type: ignore[assignment]
        self._world = world
        self._numbers = itertools.count()

    @property
    def free_blocks(self) -> int:
        return self.instance.engine.free_blocks

    def tick(self) -> None:
        self.instance.handle(told.TimerFired(self._world.now))

    def queue(self, tokens: int = 30) -> RequestId:
        name = RequestId(f"{self.id}{next(self._numbers)}")
        self.instance.engine.add(Spec(name, prompt_tokens=6, first_index=0, max_tokens=tokens, cached_blocks=0))
        return name

    def admit(self, tokens: int = 30) -> RequestId:
        name = self.queue(tokens)
        self.step()
        return name

    def step(self) -> None:
        self.instance.step()

    def abort(self, request: RequestId) -> None:
        self.instance.inbox.append(request)
        self.instance.read_inbox()

    def preempt(self, request: RequestId) -> None:
        self.instance.preempt(request)

    def tokens(self, request: RequestId) -> int:
        return sum(len(word[1]) for word in self.instance.stream if isinstance(word, tuple) and word[0] == request)

    def tokens_before(self, notice: type[AnyNotice]) -> int | None:
        told_so_far = 0
        for word in self.instance.stream:
            if isinstance(word, notice):
                return told_so_far
            told_so_far += len(word[1]) if isinstance(word, tuple) else 0
        return None


class TinyPair:
    def __init__(self) -> None:
        self._world = World(instances=2)
        self.source, self.target = (TinyEnd(self._world, name) for name in self._world.instances)

    def deliver(self) -> None:
        while self._world.link:
            self._world.deliver(0)

    def end_copies(self) -> None:
        pulls = self.target.instance.pulls
        while pulls:
            self.target.instance.pull_ends(pulls[0])

    def lose_source(self) -> None:
        self._world.kill(self.source.id)

    def pass_time(self, seconds: float) -> None:
        self._world.sleep(seconds)

    @property
    def wrong(self) -> list[str]:
        ends = (self.source, self.target)
        words = [word for end in ends for word in end.instance.stream if isinstance(word, tuple)]
        return [str(token) for word in words for token in word[1] if not token.good]


class TestTinyBody(BodyContract):
    @pytest.fixture
    def pair(self) -> TinyPair:
        return TinyPair()
