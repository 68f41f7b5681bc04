"""Names for the beginnings of prompts."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from llumnix.policy.prefix import MOST_CHUNKS, chunk_ids, salt_of

TOKENS = st.lists(st.integers(0, 200_000), max_size=60)


@given(TOKENS, TOKENS, st.integers(1, 9), st.sampled_from([0, 1, 77]), st.sampled_from([0, 1, 77]))
def test_names_are_equal_exactly_as_far_as_the_prompts_are(
    one: list[int], other: list[int], width: int, salt: int, other_salt: int
) -> None:
    common = 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    pairs = zip(chunk_ids(one, width, salt), chunk_ids(other, width, other_salt), strict=False)
    equal = [a == b for a, b in pairs]
    shared = common // width if salt == other_salt else 0
    assert equal == [True] * min(shared, len(equal)) + [False] * (len(equal) - shared)


def test_the_same_tokens_in_another_place_have_another_name() -> None:
    first, second = chunk_ids([5] * 8, 4)
    assert first != second


def test_rest_that_is_no_whole_chunk_has_no_name_and_endless_prompts_have_no_more_than_enough() -> None:
    assert len(chunk_ids(range(11), 4)) == 2
    assert chunk_ids([1, 2, 3], 4) == ()
    assert len(chunk_ids(range(4 * MOST_CHUNKS + 400), 4)) == MOST_CHUNKS


@given(TOKENS, st.integers(1, 9), st.sampled_from([0, 77]), st.data())
def test_names_that_are_known_are_gone_on_from(tokens: list[int], width: int, salt: int, data: st.DataObject) -> None:
    names = chunk_ids(tokens, width, salt)
    known = names[: data.draw(st.integers(0, len(names)))]
    assert chunk_ids(tokens, width, salt, known) == names


def test_what_is_no_number_has_no_name() -> None:
    assert chunk_ids([[1], [2]], 2) == ()  # type: ignore[list-item]
    assert len(chunk_ids([2**70, 1], 2)) == 1


def test_words_beside_the_tokens_count_each_by_itself() -> None:
    assert salt_of("", "", "") == 0
    assert len({salt_of("a", "", ""), salt_of("", "a", ""), salt_of("a", "a", ""), salt_of("\ud800", "", "")}) == 4


def test_another_process_has_the_same_names() -> None:
    script = "from llumnix.policy.prefix import *; print(chunk_ids(range(9), 3, salt_of('adapter')))"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert other.stdout.strip() == str(chunk_ids(range(9), 3, salt_of("adapter")))
