"""What `benchmarks/soak.py` finds wrong in the decision log of a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from _stories import judge_stories

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

    def write(
        self, *, first: int = 1, told: int = 1, lost: bool = True, replays: int = 1, ends_s: float = 30.0
    ) -> None:
        with written_at_once(self.path) as write:
            stories = Stories(Journal("f0", first, listener=write))
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
        return judge_stories(self.path, self.records, {"r"}).wrong


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


def test_what_happened_once_is_told_once(log: Log) -> None:
    log.write()
    told = judge_stories(log.path, log.records, {"r"})
    assert (told.ended, told.wrong) == (2, [])
    assert {kind: told.events[kind] for kind in ("dispatch", "moved", "replayed")} == {
        "dispatch": 2,
        "moved": 1,
        "replayed": 1,
    }
    assert told.furthest_s < 1e-9


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
    assert judge_stories(log.path, log.records, set()).furthest_s == pytest.approx(0.006)


def test_a_request_that_is_not_told(log: Log) -> None:
    log.write()
    told = judge_stories(log.path, log.records, {"r", "q"})
    assert told.wrong == ["q: it came to its end, which is not told"]


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        (lambda lines: [*lines[:1], *lines[2:]], ["f0 tells nothing between its entries 7 and 9"]),
        (lambda lines: [*lines, lines[0]], ["f0 tells its entry 7 twice"]),
    ],
)
def test_an_entry_that_is_lost_or_there_twice(
    log: Log, lines: Callable[[list[str]], list[str]], wrong: list[str]
) -> None:
    log.write(first=7)
    there = log.path.read_text().splitlines()
    front = [line for line in there if '"by":"f0"' in line]
    others = [line for line in there if '"by":"f0"' not in line]
    log.path.write_text("\n".join([*others, *lines(front)]) + "\n")
    assert set(wrong) <= set(log.wrong())


def test_a_front_end_that_took_the_place_of_a_dead_one_has_lost_nothing(log: Log, tmp_path: Path) -> None:
    log.write(first=1_000_000)
    later = Log(tmp_path / "later")
    later.write(first=3_000_000)
    (begins,) = [line for line in later.path.read_text().splitlines() if '"seq":3000000,' in line]
    with log.path.open("a") as file:
        file.write(begins + "\n")
    assert not [each for each in log.wrong() if each.startswith("f0")]
