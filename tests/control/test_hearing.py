"""Whom a front end hears when the news of an instance are late, or overtake what it says."""

# Ids are plain strings here, and of what class a command is, the test itself shows.
# mypy: disable-error-code="arg-type"
from __future__ import annotations

import pytest

from llumnix.control.hearing import MOST_EARLY_WORDS, Hearing


@pytest.fixture
def ears() -> Hearing[str]:
    """Instance a, with index 1, is known."""
    ears: Hearing[str] = Hearing()
    assert ears.introduced(1, "a") == []
    return ears


def test_what_an_unknown_instance_says_is_kept_until_it_is_introduced(ears: Hearing[str]) -> None:
    assert [ears.says(2, "adopted"), ears.says(1, "token"), ears.says(2, "token")] == [None, "a", None]
    assert ears.introduced(2, "b") == ["adopted", "token"]
    assert ears.says(2, "another token") == "b"
    assert ears.introduced(2, "b") == []


def test_lost_instance_is_not_heard_any_more(ears: Hearing[str]) -> None:
    assert ears.ended("a", expected=False)
    assert not ears.gone("a")
    assert ears.says(1, "token") is None
    assert ears.introduced(1, "a") == []
    assert ears.says(1, "token") is None


def test_instance_that_ends_as_it_was_told_is_heard_to_its_last_word(ears: Hearing[str]) -> None:
    assert not ears.ended("a", expected=True)
    assert ears.says(1, "token") == "a"
    assert ears.last_word("a")
    assert ears.gone("a")
    assert ears.says(1, "token") is None


def test_last_word_that_comes_before_the_news_of_the_end(ears: Hearing[str]) -> None:
    assert not ears.last_word("a")
    assert ears.ended("a", expected=True)
    assert ears.gone("a")


def test_instance_that_is_killed_while_its_last_word_is_awaited(ears: Hearing[str]) -> None:
    assert not ears.ended("a", expected=True)
    assert not ears.gone("a")
    assert not ears.gone("a")


def test_instance_that_ended_before_it_was_introduced(ears: Hearing[str]) -> None:
    ears.says(2, "last")
    assert ears.introduced(2, "b") == ["last"]
    assert ears.last_word("b") is False
    assert ears.ended("b", expected=True)
    assert ears.gone("b")
    assert ears.introduced(2, "b") == []


def test_instances_whose_reports_never_arrive_do_not_fill_the_memory(ears: Hearing[str]) -> None:
    for number in range(2 * MOST_EARLY_WORDS):
        ears.says(2 + number % 7, "token")
    assert 0 < sum(len(ears.introduced(2 + number, f"i{number}")) for number in range(7)) <= MOST_EARLY_WORDS  # type: ignore[misc]


def test_newcomer_is_heard_however_much_was_said_by_those_whose_reports_never_arrived(ears: Hearing[str]) -> None:
    for number in range(MOST_EARLY_WORDS):
        ears.says(2 + number % 7, "token")
    ears.says(9, "adopted")
    assert ears.introduced(9, "newcomer") == ["adopted"]
    assert ears.introduced(2, "the first of them") == []


def test_index_that_is_used_again_after_all_others() -> None:
    ears: Hearing[str] = Hearing()
    for number in range(65_536 + 3):
        index, instance = number % 65_536, f"i{number}"
        ears.says(index, "early")
        assert ears.introduced(index, instance) == ["early"]
        ears.ended(instance, expected=False)
        ears.gone(instance)
