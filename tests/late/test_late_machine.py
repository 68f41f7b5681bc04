"""Anything in any order on two late engines: whatever happens, every stream says what its own tokens make it say."""

from __future__ import annotations

from concurrent.futures import Future
from unittest.mock import patch

import pytest

pytest.importorskip("vllm")

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from late_device import SPECS, VOCABULARY
from late_pair import LatePair, Session

from llumnix.config import PolicyConfig
from llumnix.control import changes_of_turn
from llumnix.engine.vllm.instance.step_watch import StepWatch
from llumnix.policy.snapshot import StepCost

ENDS = st.integers(0, 1)
SOME = st.integers(0, 5)
PREFIXES: tuple[list[int], ...] = ([], list(range(8)), list(range(13)), list(range(16)), list(range(30)))
STEPS = 60
FREE = StepCost(fixed_ms=20.0, prefill_token_us=0.0, request_us=0.0, context_token_us=0.0)
USUAL = ("full", "windows")


class AnyOrder(RuleBasedStateMachine):
    layout = "full"
    drafts = False
    ranks = 1

    def __init__(self) -> None:
        super().__init__()
        self.pair = LatePair(self.layout, self.drafts, self.ranks)
        for at in (0, 1):
            self.pair.cores[at].scheduler.obey(PolicyConfig())
        self.all: list[Session] = []
        self.resets: list[Future[bool]] = []

    @rule(
        at=ENDS,
        prefix=st.sampled_from(PREFIXES),
        own=st.integers(1, 9),
        max_tokens=st.integers(2, 25),
        stops=st.booleans(),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        onward=st.booleans(),
    )
    def ask(
        self, at: int, prefix: list[int], own: int, max_tokens: int, stops: bool, priority: int, onward: bool
    ) -> None:
        if len(self.pair.sessions) < 12:
            prompt = prefix + [(7 * own + n) % VOCABULARY for n in range(own)]
            stop_tokens = tuple(range(0, VOCABULARY, 9)) if stops else ()
            self.all.append(self.pair.ask(at, prompt, max_tokens, stop_tokens, priority, onward))

    @rule(at=ENDS, turns=st.integers(1, 5))
    def step(self, at: int, turns: int) -> None:
        for _ in range(turns):
            self.pair.step(at)

    @rule(at=ENDS)
    def device_runs(self, at: int) -> None:
        self.pair.device_runs(at)

    @rule(at=ENDS, turns=st.integers(5, 20))
    def turns_change(self, at: int, turns: int) -> None:
        """Who stands still there, for however short, takes the place of one that runs."""
        with (
            patch.object(changes_of_turn, "LONGEST_PAUSE_S", 0.0),
            patch.object(changes_of_turn, "LEAST_TURN_S", 0.0),
            patch.object(StepWatch, "cost", FREE),
        ):
            for _ in range(turns):
                self.pair.device_runs(at)
                self.pair.step(at)

    @rule(source=ENDS, number=SOME, flies=st.booleans())
    def move(self, source: int, number: int, flies: bool) -> None:
        names = sorted(self.pair.cores[source].scheduler.requests)
        self.pair.move(source, names[number % len(names)] if names else None)
        if flies:
            self.pair.fly()

    @rule(turns=st.integers(2, 4))
    def both_step_and_letters_fly(self, turns: int) -> None:
        for _ in range(turns):
            self.pair.step(0)
            self.pair.step(1)
            self.pair.fly()

    @rule()
    def fly(self) -> None:
        self.pair.fly()

    @rule(number=SOME, blocks=st.integers(1, 6), in_step=st.booleans())
    def deliver_and_copy_some(self, number: int, blocks: int, in_step: bool) -> None:
        self.pair.deliver(number, in_step)
        self.pair.copy(blocks, number)

    @rule(source=ENDS, number=SOME, blocks=st.integers(0, 3), breaks=st.booleans(), late=st.booleans())
    def move_until_blocks_come(self, source: int, number: int, blocks: int, breaks: bool, late: bool) -> None:
        """And if they do, something may come between."""
        self.move(source, number, flies=False)
        for _ in range(12):
            if not self.pair.wires.pulls:
                self.pair.turn_but_for_pulls()
        self.pair.copy(blocks, number)
        self.pair.hinder(number, breaks=breaks, late=late)
        self.pair.copy(0, number)

    @rule(number=SOME)
    def late_bytes_land(self, number: int) -> None:
        self.pair.late_bytes_land(number)

    @rule(count=st.integers(1, 8))
    def read(self, count: int) -> None:
        for _ in range(count):
            self.pair.read(0)
            self.pair.read(1)

    @rule(turns=st.integers(1, 8))
    def everything_goes_on(self, turns: int) -> None:
        for _ in range(turns):
            self.pair.turn()

    @rule(
        what=st.sampled_from(["leaves", "replayed", "a second", "a minute", "reset", "all preempted"]),
        number=SOME,
        at=ENDS,
    )
    def trouble(self, what: str, number: int, at: int) -> None:
        alive = list(self.pair.sessions.values())
        if what == "leaves" and alive:
            self.pair.leave(alive[number % len(alive)])
        elif what == "replayed" and alive:
            self.pair.drive_out(alive[number % len(alive)])
        elif what in ("a second", "a minute"):
            self.pair.pass_time(1.0 if what == "a second" else 60.0)
        elif what in ("reset", "all preempted"):
            answer = self.pair.cores[at].reset_prefix_cache(reset_running_requests=what == "all preempted")
            if isinstance(answer, Future):
                self.resets.append(answer)

    @invariant()
    def nothing_wrong(self) -> None:
        assert self.pair.wrong == []

    def teardown(self) -> None:
        self.pair.settle()
        assert self.pair.wrong == []
        assert self.pair.leftovers == []
        assert all(session.ended for session in self.all)
        assert all(reset.result(0) is True for reset in self.resets)


def machine(layout: str) -> type[AnyOrder]:
    return type("AnyOrder", (AnyOrder,), {"layout": layout})


@pytest.mark.parametrize(("layout", "examples"), [(each, 200 if each in USUAL else 40) for each in SPECS])
def test_any_order(layout: str, examples: int) -> None:
    run(machine(layout), examples)


@pytest.mark.parametrize(("layout", "examples"), [("full", 200), ("states of drafts", 60)])
def test_any_order_of_requests_with_drafts(layout: str, examples: int) -> None:
    run(type("AnyOrder", (AnyOrder,), {"layout": layout, "drafts": True}), examples)


@pytest.mark.parametrize("layout", USUAL)
def test_any_order_where_each_of_two_workers_has_its_share_of_every_block(layout: str) -> None:
    run(type("AnyOrder", (AnyOrder,), {"layout": layout, "ranks": 2}), examples=100)


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("layout", SPECS)
def test_any_order_a_thousand_times(layout: str) -> None:
    run(machine(layout), examples=1000)


def run(machine: type[AnyOrder], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=examples, stateful_step_count=STEPS, suppress_health_check=list(HealthCheck)),
    )
