"""Stories of requests: every moment is in one part, and the parts add up."""

from __future__ import annotations

import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.journal import stories as module
from llumnix.journal.entries import EndNoted, FirstTokenNoted, MoveNoted, PreemptionNoted, Spent
from llumnix.journal.journal import Journal
from llumnix.journal.stories import Stories
from llumnix.journal.story import FIRST_KEPT, LAST_KEPT, RequestStory, Story
from llumnix.journal.words import story_lines
from llumnix.policy.dispatch import DispatchReason, Judged
from llumnix.types import InstanceId
from move_outcomes import outcome

A, B = InstanceId("i0"), InstanceId("i1")


def reason(chosen: InstanceId = A, candidates: int = 2) -> DispatchReason:
    others = (Judged(InstanceId(f"i{number + 2}"), 123.456 + number) for number in range(candidates - 1))
    return DispatchReason("freeness", (Judged(chosen, 200.5), *others), 16)


def begun(stories: Stories | None = None, name: str = "r", candidates: int = 2) -> Story:
    """It arrived at 10 and was placed at 10.5."""
    story = (stories or Stories(Journal("f0"))).began(10.0, name, f"{name}-0-7f", 812)
    story.dispatched(10.5, reason(candidates=candidates))
    return story


def spent(story: Story) -> dict[str, float]:
    parts: dict[str, float] = msgspec.structs.asdict(story.spent)
    return {name.removesuffix("_s"): round(seconds, 6) for name, seconds in parts.items() if seconds}


def kinds(story: Story | RequestStory) -> list[str]:
    return [entry.kind for entry in story.entries]


def test_an_undisturbed_request() -> None:
    story = begun()
    story.scheduled(11.0)
    story.token(12.0, cached_tokens=64)
    story.ended(20.0, "length", 391)
    assert spent(story) == {"placing": 0.5, "queue": 0.5, "prefill": 1.0, "decode": 8.0}
    assert kinds(story) == ["dispatch", "first_token", "ended"]
    assert story.entries[1].what == FirstTokenNoted(2.0, 0.5, 1.0, 64)
    last = story.entries[2].what
    assert isinstance(last, EndNoted)
    assert (last.outcome, last.prompt_tokens, last.output_tokens, last.latency_s) == ("length", 812, 391, 10.0)


def test_without_times_of_the_engine_the_queue_counts_as_prefill() -> None:
    story = begun()
    story.token(12.0)
    assert spent(story) == {"placing": 0.5, "prefill": 1.5}


def test_a_preemption_is_told_with_the_next_token_and_lasts_from_where_it_was() -> None:
    story = begun()
    story.scheduled(11.0)
    story.token(12.0)
    story.preempted(14.0)
    story.scheduled(15.0)
    story.token(15.5)
    story.ended(16.0, "stop", 9)
    assert spent(story) == {"placing": 0.5, "queue": 0.5, "prefill": 1.0, "decode": 2.5, "preempted": 1.5}
    assert kinds(story) == ["dispatch", "first_token", "preempted", "ended"]
    assert story.entries[2].what == PreemptionNoted(1.0, 1.5)


def test_a_preemption_before_the_first_token() -> None:
    story = begun()
    story.scheduled(11.0)
    story.preempted(11.5)
    story.scheduled(13.0)
    story.token(14.0)
    assert spent(story) == {"placing": 0.5, "queue": 0.5, "prefill": 1.5, "preempted": 1.5}


def test_a_move_costs_what_its_client_felt_of_it() -> None:
    story = begun()
    story.token(12.0)
    story.moved(15.0, outcome(A, B), downtime_s=0.25)
    story.ended(16.0, "stop", 9)
    assert spent(story) == {"placing": 0.5, "prefill": 1.5, "decode": 3.75, "moving": 0.25}
    moved, ended = story.entries[2:]
    assert isinstance(moved.what, MoveNoted)
    assert (moved.instance, moved.what.target, moved.what.downtime_ms) == (A, B, 250.0)
    assert ended.instance == B


def test_a_move_before_the_first_token_costs_no_downtime() -> None:
    story = begun()
    story.moved(11.0, outcome(A, B), downtime_s=None)
    story.scheduled(11.5)
    story.token(12.0)
    assert spent(story) == {"placing": 0.5, "queue": 1.0, "prefill": 0.5}


def test_what_is_lost_with_an_instance_is_what_came_after_the_last_token() -> None:
    story = begun()
    story.token(12.0)
    story.parked(17.0, "i0 is gone", last_token_s=14.0)
    story.replayed(18.0, reason(B), "i0 is gone", delivered_tokens=5, last_token_s=14.0)
    story.scheduled(18.5)
    story.token(19.0)
    story.ended(20.0, "stop", 9)
    assert spent(story) == {"placing": 0.5, "prefill": 1.5, "decode": 3.0, "replay": 5.0}
    assert kinds(story) == ["dispatch", "first_token", "parked", "replayed", "ended"]


def test_the_parts_so_far_add_up_too_and_the_story_goes_on() -> None:
    stories = Stories(Journal("f0", since_s=1000.0))
    story = begun(stories)
    (told,) = stories.tell("r", 11.0).stories
    assert (told.ended, told.latency_s, told.spent.total_s, told.spent.queue_s) == (False, 1.0, 1.0, 0.5)
    assert told.arrived_at_s == 1010.0
    assert spent(story) == {"placing": 0.5}


def test_a_request_that_is_not_taken_has_waited_and_nothing_else() -> None:
    story = Stories(Journal("f0")).began(10.0, "r", "r-0-7f", 812)
    story.refused(11.0, 503, "the room is full")
    assert spent(story) == {"placing": 1.0}
    assert (kinds(story), story.entries[0].why) == (["refused"], "the room is full")
    assert next(story_lines(story.told(11.0))) == "r was not taken"


STEPS = st.sampled_from(("scheduled", "preempted", "token", "moved", "stayed", "parked", "replayed"))


@given(st.lists(st.tuples(STEPS, st.floats(-1, 5)), max_size=30))
def test_whatever_happens_in_whatever_order_the_parts_add_up(steps: list[tuple[str, float]]) -> None:
    stories = Stories(Journal("f0"))
    story, now_s = begun(stories), 10.5
    for step, ahead_s in steps:
        now_s += max(0.0, ahead_s)
        tell(story, step, now_s, now_s + min(0.0, ahead_s))
    story.ended(now_s, "stop", 9)
    parts = msgspec.structs.astuple(story.spent)
    assert all(seconds >= 0 for seconds in parts)
    assert sum(parts) == pytest.approx(now_s - 10.0)
    times = [entry.at_s for entry in story.entries]
    assert times == sorted(times)
    asked = [step for step, _ in steps if step in ("moved", "stayed", "parked", "replayed")]
    assert [kind for kind in kinds(story) if kind in asked] == asked


def tell(story: Story, step: str, now_s: float, before_s: float) -> None:
    match step:
        case "scheduled" | "preempted":
            getattr(story, step)(before_s)
        case "token":
            story.token(now_s)
        case "moved":
            story.moved(now_s, outcome(A, B), downtime_s=0.3)
        case "stayed":
            story.stayed(now_s, outcome(A, B, why_not="no room"))
        case "parked":
            story.parked(now_s, "gone", before_s)
        case "replayed":
            story.replayed(now_s, reason(B), "gone", 1, before_s)


def test_a_story_that_ended_is_told_as_it_was() -> None:
    stories = Stories(Journal("f0", since_s=1000.0))
    story = begun(stories)
    story.token(12.0)
    story.ended(20.0, "error", 3, "it was lost")
    stories.over(story)
    (told,) = stories.tell("r", 99.0).stories
    assert told.entries == tuple(story.entries)
    assert (told.request, told.sequence, told.ended, told.arrived_at_s, told.latency_s) == (
        *("r", "r-0-7f", True, 1010.0, 10.0),
    )
    assert told.spent == story.spent == Spent(placing_s=0.5, prefill_s=1.5, decode_s=8.0)
    assert stories.tell("somebody else", 99.0).stories == ()


def test_a_story_begins_by_the_clock_as_it_was_when_it_arrived() -> None:
    ahead_s = [1000.0]
    stories = Stories(Journal("f0", since_s=1000.0, clock_s=lambda: ahead_s[0]))
    story = begun(stories)
    ahead_s[0] = 5000.0
    story.ended(20.0, "stop", 3)
    stories.over(story)
    (told,) = stories.tell("r", 99.0).stories
    assert [told.arrived_at_s, *(entry.at_s for entry in told.entries)] == [1010.0, 1010.5, 5020.0]
    assert told.latency_s == 10.0


def test_a_long_story_keeps_its_beginning_and_its_end() -> None:
    stories = Stories(Journal("f0"))
    story = begun(stories)
    for number in range(100):
        story.stayed(11.0 + number, outcome(A, B, why_not=f"no room {number}"))
    story.ended(200.0, "stop", 1)
    stories.over(story)
    (told,) = stories.tell("r", 200.0).stories
    assert (len(told.entries), told.left_out) == (FIRST_KEPT + LAST_KEPT, 102 - FIRST_KEPT - LAST_KEPT)
    assert [told.entries[0].kind, told.entries[-1].kind] == ["dispatch", "ended"]


def test_several_sequences_of_a_request_are_told_together() -> None:
    stories = Stories(Journal("f0"))
    first, _ = (stories.began(10.0, "r", f"{number}_r-7f", 12) for number in range(2))
    first.ended(11.0, "stop", 1)
    stories.over(first)
    assert [told.sequence for told in stories.tell("r", 12.0).stories] == ["0_r-7f", "1_r-7f"]


def over(stories: Stories, name: str, number: int) -> None:
    """One more sequence of this request has ended."""
    story = stories.began(10.0, name, f"{name}-{number}", 12)
    story.ended(11.0, "stop", 1)
    stories.over(story)


def test_of_very_many_sequences_with_one_id_the_latest_are_kept_and_an_end_reads_none_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that gives every request the same id, or a completion of thousands of prompts."""
    stories = Stories(Journal("f0"))
    monkeypatch.setattr(module, "_ENDED", None)
    for number in range(300):
        over(stories, "r", number)
    monkeypatch.undo()
    assert stories.tell("r", 12.0).kept == module.SEQUENCES_KEPT
    for number in range(300, 310):
        stories.began(10.0, "r", f"r-{number}", 12)
    told = stories.tell("r", 12.0)
    assert [each.sequence for each in told.stories] == [f"r-{number}" for number in range(310 - 64, 310)]
    assert (told.left_out, told.kept) == ({"r": 310 - 64}, 64)


def test_an_id_that_goes_and_comes_again_is_told_without_what_was_forgotten_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ENDED_KEPT", 100)
    stories = Stories(Journal("f0"))
    for number in range(70):
        over(stories, "r", number)
    assert stories.tell("r", 12.0).left_out == {"r": 6}
    for number in range(100):
        over(stories, f"another-{number}", 0)
    assert stories.tell("r", 12.0).stories == ()
    over(stories, "r", 70)
    told = stories.tell("r", 12.0)
    assert ([each.sequence for each in told.stories], told.left_out) == (["r-70"], {})
    assert told.kept == 100


def test_an_id_that_is_used_all_the_time_does_not_go_before_its_newest_story_is_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ENDED_KEPT", 20)
    stories = Stories(Journal("f0"))
    for number in range(100):
        over(stories, "always", number)
        over(stories, f"other-{number}", 0)
    assert stories.tell("always", 12.0).stories[-1].sequence == "always-99"
    assert stories.tell("other-99", 12.0).stories
    assert stories.tell("always", 12.0).kept == 20


def test_the_beginning_of_an_id_is_enough_where_it_fits_one() -> None:
    stories = Stories(Journal("f0"))
    for name in ("cmpl-91b", "cmpl-91c", "cmpl-91", "cmpl-77d"):
        story = begun(stories, name)
        if name != "cmpl-77d":
            story.ended(20.0, "stop", 1)
            stories.over(story)

    def found(request: str) -> list[str]:
        return [told.request for told in stories.tell(request, 30.0).stories]

    assert found("cmpl-7") == ["cmpl-77d"], "one that goes on"
    assert found("cmpl-91b") == ["cmpl-91b"]
    assert found("cmpl-91") == ["cmpl-91"], "that is all of it"
    assert len(found("cmpl-9")) == 2, "of two it cannot be told which is meant"
    assert found("cmpl-") == [], "too short"


@pytest.mark.parametrize(("limit", "most"), [("ENDED_KEPT", 10), ("ENDED_BYTES", 3000)])
def test_the_oldest_stories_go_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch, limit: str, most: int) -> None:
    monkeypatch.setattr(module, limit, most)
    stories = Stories(Journal("f0"))
    for number in range(30):
        story = begun(stories, f"r{number}")
        story.ended(20.0, "stop", 1)
        stories.over(story)
    assert stories.tell("r29", 30.0).kept <= 10
    assert stories.tell("r0", 30.0).stories == ()
    assert stories.tell("r29", 30.0).stories


def test_long_ids_count_as_what_is_kept_under_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENDED_BYTES", 100_000)
    stories = Stories(Journal("f0"))
    for number in range(300):
        over(stories, f"{number:01000}", 0)
    assert 50 < stories.tell(f"{299:01000}", 12.0).kept < 100
    for number in range(1000):
        over(stories, f"r{number}", 0)
    assert stories.tell("r999", 12.0).kept > 100, "their place is free again"


def test_a_story_that_ended_is_small() -> None:
    """With five candidates and a move: at most 1 KiB."""
    stories = Stories(Journal("f0"))
    name = "cmpl-b02c3f4d5e6f708192a3b4c5d6e7f809"
    story = begun(stories, name, candidates=5)
    story.scheduled(11.0)
    story.token(12.0, 64)
    story.moved(15.0, outcome(A, B), 0.007)
    story.ended(20.0, "length", 391)
    stories.over(story)
    (kept,) = stories._ended[name]
    assert sys.getsizeof(kept) + sys.getsizeof(stories._ended[name]) + sys.getsizeof(name) <= 1024
