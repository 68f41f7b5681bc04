"""What front ends know of who holds which prefix: against a naive one, over channels that lose."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llumnix.control import prefix_table
from llumnix.control.prefix_index import PrefixIndex
from llumnix.control.prefix_table import Chunk, Depths, PrefixNews, PrefixTable
from llumnix.types import InstanceId, RequestId

A, B = InstanceId("a"), InstanceId("b")


def chunks(*ids: int) -> list[Chunk]:
    return [Chunk(each, f"key {each}") for each in ids]


def table(cached: set[int]) -> PrefixTable:
    def is_cached(key: Hashable) -> bool:
        return int(str(key).removeprefix("key ")) in cached

    return PrefixTable(is_cached)


def test_request_finds_what_one_before_it_will_have_computed() -> None:
    t = table(set())
    assert t.comes(RequestId("first"), chunks(1, 2, 3)) == Depths(0, coming=0)
    assert t.comes(RequestId("second"), chunks(1, 2, 9)) == Depths(0, coming=2)
    assert t.comes(RequestId("third"), chunks(1, 2, 9, 10)) == Depths(0, coming=3)


def test_what_is_computed_of_one_before_it_is_cached_and_the_rest_is_still_to_come() -> None:
    cached: set[int] = set()
    t = table(cached)
    t.comes(RequestId("first"), chunks(1, 2, 3))
    cached |= {1, 2}
    assert t.comes(RequestId("second"), chunks(1, 2, 3, 4)) == Depths(2, coming=3)
    cached |= {3}
    t.sweep(lambda _: False)
    assert t.comes(RequestId("third"), chunks(1, 2, 3, 4)) == Depths(3, coming=0), "the second was given up"


def test_what_the_engine_has_thrown_away_goes_and_what_is_still_to_be_computed_stays() -> None:
    cached = {1, 2}
    t = table(cached)
    t.comes(RequestId("over"), chunks(1, 2, 3))
    t.comes(RequestId("waits"), chunks(1, 7))
    t.sweep(lambda request: request == "waits")
    assert t.comes(RequestId("x"), chunks(1, 2, 3)) == Depths(2, coming=1)
    cached -= {1, 2}
    t.sweep(lambda request: request == "waits")
    assert t.comes(RequestId("y"), chunks(1, 7)) == Depths(0, coming=2)
    assert t.comes(RequestId("z"), chunks(2)) == Depths(0, coming=0)


def test_news_are_what_changed_and_nothing_if_it_changed_back() -> None:
    cached: set[int] = set()
    t = table(cached)
    assert t.news() is None
    t.comes(RequestId("r"), chunks(1, 2))
    first = t.news()
    assert first is not None
    assert (sorted(first.added), first.whole) == ([1, 2], True)
    t.comes(RequestId("s"), chunks(3))
    t.sweep(lambda _: False)
    assert t.news() == PrefixNews(first.number + 1, (), (1, 2))
    assert t.news() is None


def test_table_is_bounded() -> None:
    t = table(set())
    for first in range(0, 3 * prefix_table.MOST_ENTRIES, 256):
        t.holds(chunks(*range(first, first + 256)))
    assert len(t) == prefix_table.MOST_ENTRIES
    held = t.everything().added
    assert (min(held), max(held)) == (2 * prefix_table.MOST_ENTRIES, 3 * prefix_table.MOST_ENTRIES - 1)


def test_everything_is_told_again_now_and_then() -> None:
    t = table(set())
    told = []
    for k in range(prefix_table.WHOLE_EVERY + 2):
        t.holds(chunks(k))
        news = t.news()
        assert news is not None
        told.append(news.whole)
    assert [place for place, whole in enumerate(told) if whole] == [0, prefix_table.WHOLE_EVERY + 1]


def test_depth_is_how_much_of_the_beginning_an_instance_has() -> None:
    index = PrefixIndex()
    index.hear(A, PrefixNews(1, (1, 2, 3), whole=True))
    index.hear(B, PrefixNews(1, (1, 3), whole=True))
    assert index.depths([1, 2, 3, 4]) == {A: 3, B: 1}
    assert index.depths([1, 2, 3]) == {A: 3, B: 1}
    assert index.depths([9, 1]) == {}
    assert index.depths([]) == {}


def test_after_a_gap_nothing_is_known_until_everything_is_told() -> None:
    index = PrefixIndex()
    assert index.hear(A, PrefixNews(1, (1,), whole=True))
    assert not index.hear(A, PrefixNews(3, (3,)))
    assert index.hear(A, PrefixNews(4, (4,))), "it is asked once"
    assert index.depths([1]) == index.depths([4]) == {}
    assert index.hear(A, PrefixNews(5, (1, 3, 4), whole=True))
    assert index.depths([1, 4]) == {A: 2}


def test_what_was_sent_counts_until_the_instance_says_itself() -> None:
    index = PrefixIndex()
    index.hear(A, PrefixNews(1, (), whole=True))
    index.sent(A, [1, 2])
    index.sent(A, [1])
    index.counted(A, [1, 2])
    assert index.depths([1, 2]) == {A: 1}
    index.hear(A, PrefixNews(2, (1,)))
    index.counted(A, [1])
    assert index.depths([1, 2]) == {A: 1}
    index.hear(A, PrefixNews(3, (), (1,)))
    assert index.depths([1, 2]) == {}


def test_lost_instance_holds_nothing_and_its_place_is_used_again() -> None:
    index = PrefixIndex()
    index.hear(A, PrefixNews(1, (1,), whole=True))
    index.sent(A, [2])
    index.hear(B, PrefixNews(1, (1,), whole=True))
    index.remove(A)
    index.remove(A)
    assert index.depths([1]) == {B: 1}
    assert index.depths([2]) == {}
    index.hear(InstanceId("c"), PrefixNews(1, (2,), whole=True))
    assert index.depths([2]) == {"c": 1}
    assert index._bits == {1: 0b10, 2: 0b01}


class IndexModel(RuleBasedStateMachine):
    """Two instances' tables, and an index that misses news now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.cached: dict[InstanceId, set[int]] = {A: set(), B: set()}
        self.tables = {name: table(cached) for name, cached in self.cached.items()}
        self.waiting: dict[InstanceId, set[str]] = {A: set(), B: set()}
        self.told: dict[InstanceId, set[int]] = {A: set(), B: set()}
        """What the last news left that arrived."""
        self.number = 0

    @rule(name=st.sampled_from([A, B]), ids=st.lists(st.integers(1, 6), max_size=4, unique=True))
    def a_request_comes(self, name: InstanceId, ids: list[int]) -> None:
        self.number += 1
        self.waiting[name].add(f"r{self.number}")
        self.tables[name].comes(RequestId(f"r{self.number}"), chunks(*ids))

    @rule(name=st.sampled_from([A, B]), ids=st.sets(st.integers(1, 6)))
    def the_cache_changes(self, name: InstanceId, ids: set[int]) -> None:
        self.cached[name].clear()
        self.cached[name].update(ids)
        self.waiting[name].clear()
        self.tables[name].sweep(lambda request: request in self.waiting[name])

    @rule(name=st.sampled_from([A, B]), lost=st.sampled_from([True, False, False]))
    def news_go_out(self, name: InstanceId, lost: bool) -> None:
        news = self.tables[name].news()
        if news is None or lost:
            return
        if not self.index.hear(name, news):
            assert self.index.hear(name, self.tables[name].everything())
        self.told[name] = set(self.tables[name]._keys)

    @invariant()
    def what_is_known_is_what_was_told(self) -> None:
        for first in range(1, 7):
            assert self.index.depths([first]) == {name: 1 for name, told in self.told.items() if first in told}

    def teardown(self) -> None:
        for name in (A, B):
            self.index.hear(name, self.tables[name].everything())
            held = {each for each in range(1, 7) if self.depth(name, [each])}
            assert held == set(self.tables[name]._keys)

    def depth(self, name: InstanceId, ids: Sequence[int]) -> int:
        return self.index.depths(ids).get(name, 0)


TestIndexModel = IndexModel.TestCase
TestIndexModel.settings = settings(max_examples=60, stateful_step_count=30)
