"""A list of ten thousand requests is made between the steps, and takes little of each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("vllm")

from llumnix.engine.vllm.instance.listing import SHARE, Listing
from llumnix.types import RequestId
from llumnix.wire.to_front_end import RequestRow
from llumnix.wire.to_instance import ListRequests

ROW_S = 1e-5


class Instance:
    """Its clock goes on by the rows that are made and by the steps."""

    def __init__(self, requests: int) -> None:
        self.now = 0.0
        self.requests = requests
        self.answers: list[tuple[int, int]] = []
        self.listing = Listing(
            self._rows, lambda asked, rows: self.answers.append((asked.query, len(rows))), self._clock
        )

    def _clock(self) -> float:
        return self.now

    def _rows(self, like: str) -> Iterator[RequestRow]:
        for number in range(self.requests):
            self.now += ROW_S
            name = f"r{number}"
            if like in name:
                yield RequestRow(
                    request=RequestId(name),
                    client_id=name,
                    front_end=0,
                    priority=0,
                    prompt_tokens=1,
                    output_tokens=1,
                    state="running",
                    migrations=0,
                )

    def ask(self, query: int, like: str = "") -> None:
        self.listing.ask(ListRequests(query=query, reply_to="", like=like))

    def step(self, step_s: float) -> float:
        """For how long the next step was held up."""
        self.now += step_s
        before = self.now
        self.listing.go_on()
        return self.now - before


@pytest.mark.parametrize("step_s", [0.003, 0.02, 0.2])
def test_steps_go_on_while_the_list_is_made(step_s: float) -> None:
    instance = Instance(10_000)
    instance.ask(1)
    while not instance.answers:
        assert instance.step(step_s) < max(0.0002, 2 * SHARE * step_s) + 20 * ROW_S
    assert instance.answers == [(1, 10_000)]
    assert instance.now < 10.0


def test_idle_engine_answers_at_once_and_each_question_gets_its_own_answer() -> None:
    instance = Instance(100)
    for query, like in ((1, ""), (2, "r9"), (3, "nobody")):
        instance.ask(query, like)
    instance.listing.finish()
    assert instance.answers == [(1, 100), (2, 11), (3, 0)]


def test_questions_of_a_crowd_do_not_pile_up() -> None:
    instance = Instance(100)
    for query in range(1000):
        instance.ask(query)
    instance.listing.finish()
    assert [query for query, _ in instance.answers] == list(range(984, 1000))
