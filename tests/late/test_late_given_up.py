"""Reads of blocks that are given up, or fail: nobody gets the blocks while a byte may still land in them."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from late_device import BLOCKS
from late_pair import LatePair, Session, being_read


def free_blocks(pair: LatePair) -> int:
    """At i1."""
    return pair.cores[1].scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


def letters_arrive(pair: LatePair) -> None:
    while pair.wires.letters:
        pair.deliver()


def stays_where_it_is(pair: LatePair, session: Session) -> None:
    assert free_blocks(pair) == BLOCKS - 1
    pair.settle()
    assert (pair.moved, len(session.tokens)) == (0, 30)
    assert (pair.wrong, pair.leftovers) == ([], [])


@pytest.mark.parametrize("breaks", [True, False], ids=["it breaks", "its time is up"])
def test_blocks_where_late_bytes_may_land_are_nobodys_until_they_have(breaks: bool) -> None:
    pair = LatePair()
    session = being_read(pair)
    pair.hinder(0, breaks=breaks, late=True)
    if not breaks:
        pair.pass_time(60.0)
    pair.copy(0)
    letters_arrive(pair)
    assert not pair.cores[1].scheduler.places
    assert free_blocks(pair) < BLOCKS - 1
    pair.late_bytes_land()
    letters_arrive(pair)
    stays_where_it_is(pair, session)


@pytest.mark.parametrize("late", [True, False], ids=["with late bytes", "at once"])
@pytest.mark.parametrize("first", [0, 1])
def test_where_one_of_two_workers_fails_the_other_ends_before_the_blocks_are_given_back(first: int, late: bool) -> None:
    pair = LatePair(ranks=2)
    session = being_read(pair)
    assert len(pair.wires.pulls) == 2
    pair.hinder(first, breaks=True, late=late)
    pair.copy(0, first)
    letters_arrive(pair)
    pair.late_bytes_land()
    letters_arrive(pair)
    assert pair.cores[1].scheduler.places, "the move has not failed before"
    pair.copy(BLOCKS)
    letters_arrive(pair)
    stays_where_it_is(pair, session)
