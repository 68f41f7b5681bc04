"""What `benchmarks/soak.py` finds wrong in the decision log of a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from _stories import wrong_stories

from llumnix.decision_log import written_at_once
from llumnix.journal.entries import InstanceNoted, JournalEntry
from llumnix.journal.journal import Journal
from llumnix.journal.stories import Stories
from llumnix.journal.story import Story
from llumnix.policy.dispatch import DispatchReason, Judged
from llumnix.report.records import MigrationRecord, migration_record
from llumnix.types import InstanceId
from move_outcomes import outcome

A, B, C = map(InstanceId, ("i0", "i1", "i2"))


def placed(instance: InstanceId) -> DispatchReason:
    return DispatchReason("freeness", (Judged(instance, 1.0),), 3)


class Log:
    """Of one request that moves from i0 to i1, which is lost, and ends on i2: unless a test has it otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[MigrationRecord] = []

    def write(self, *, told: int = 1, lost: bool = True, replays: int = 1, ends_s: float = 30.0) -> None:
        with written_at_once(self.path) as write:
            stories = Stories(Journal("f0", listener=write))
            scheduler = Journal("s", listener=write)
            story = stories.began(1.0, "r", "r-0", 9)
            story.dispatched(1.0, placed(A))
            story.token(2.0)
            for _ in range(told):
                story.moved(3.0, outcome(A, B), 0.01)
            self.records.append(migration_record(3.0, "r", outcome(A, B), 0.01))
            if lost:
                scheduler.note(4.0, InstanceNoted(serves=False), instance=B, why="killed")
            for _ in range(replays):
                story.replayed(4.1, placed(C), "i1 was lost", 2, 3.5)
            self._another(write, A, ends_s)
            if not lost:
                self._another(write, B, ends_s)
            story.ended(ends_s, "stop", 9)
            stories.over(story)

    @staticmethod
    def _another(write: Callable[[JournalEntry], None], instance: InstanceId, at_s: float) -> None:
        """A request that begins there late: so the instance lives."""
        stories = Stories(Journal(f"f-{instance}", listener=write))
        story = stories.began(at_s - 1, f"x-{instance}", f"x-{instance}-0", 9)
        story.dispatched(at_s - 1, placed(instance))
        story.token(at_s - 0.5)
        story.ended(at_s, "stop", 9)
        stories.over(story)

    def wrong(self) -> list[str]:
        return wrong_stories(self.path, self.records)[1]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


def test_what_happened_once_is_told_once(log: Log) -> None:
    log.write()
    assert wrong_stories(log.path, log.records) == (2, [])


def test_a_move_that_is_told_twice(log: Log) -> None:
    log.write(told=2)
    assert log.wrong() == [
        "r-0: m1 is told 2 times",
        "r: m1 is recorded 1 times as moved, and told 2 times",
    ]


def test_a_move_that_is_not_told(log: Log) -> None:
    log.write(told=0, lost=False, replays=0)
    assert log.wrong() == ["r: m1 is recorded 1 times as moved, and told 0 times"]


def test_a_replay_that_is_not_told(log: Log) -> None:
    log.write(replays=0)
    assert log.wrong() == ["r-0: it was on i1, which was lost long before its end"]


def test_a_replay_from_an_instance_that_lives(log: Log) -> None:
    log.write(lost=False)
    assert log.wrong() == ["r-0: it was replayed from i1, which worked on"]


def test_parts_that_do_not_add_up(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Story.ended

    def ended(story: Story, at_s: float, outcome: str, output_tokens: int) -> None:
        story.spent.decode_s += 0.006
        whole(story, at_s, outcome, output_tokens)

    monkeypatch.setattr(Story, "ended", ended)
    log.write()
    assert [each.partition(": ")[2] for each in log.wrong()] == [
        *("it lasted 29.000 s, and its parts 29.006 s", "it lasted 1.000 s, and its parts 1.006 s"),
    ]
