"""Placement by time, by what is cached, and by what it costs the others; and the rules of routers beside it."""

from __future__ import annotations

from typing import Any

import pytest

from llumnix.config import PolicyConfig
from llumnix.control.dispatcher import Dispatcher
from llumnix.control.prefix_table import PrefixNews
from llumnix.policy.dispatch import DispatchReason, DispatchRequest
from llumnix.policy.snapshot import InstanceSnapshot, StepCost
from llumnix.types import HIGH, NORMAL, InstanceId, RequestId

COST = StepCost(fixed_ms=10.0, prefill_token_us=100.0, request_us=500.0, context_token_us=1.0)


def report(name: str, seq: int = 1, **facts: Any) -> InstanceSnapshot:
    usual = {
        "at": 0.0,
        "total_blocks": 10_000,
        "free_blocks": 9000,
        "step_cost": COST,
        "step_tokens": 2048,
        "prefix_chunk_tokens": 500,
    }
    return InstanceSnapshot(id=InstanceId(name), seq=seq, **{**usual, **facts})


def dispatcher(
    *reports: InstanceSnapshot, holds: dict[str, tuple[int, ...]] | None = None, **config: Any
) -> Dispatcher:
    made = Dispatcher(PolicyConfig(**config))
    for one in reports:
        made.on_report(one)
    for name, ids in (holds or {}).items():
        made.on_prefixes(InstanceId(name), PrefixNews(1, ids, whole=True))
    return made


def asked(tokens: int, chunks: tuple[int, ...] = (), priority: int = NORMAL, name: str = "r") -> DispatchRequest:
    return DispatchRequest(RequestId(name), tokens, priority, chunks)  # type: ignore[arg-type]


def decide(dispatcher: Dispatcher, request: DispatchRequest) -> DispatchReason:
    dispatch = dispatcher.dispatch(request)
    assert dispatch is not None
    return dispatch.reason


def test_request_goes_where_it_has_its_first_token_soonest_though_another_is_freer() -> None:
    busy = report("busy", free_blocks=9900, prefill_tokens=8000, waiting=2)
    full = report("full", free_blocks=1000, running=10, decoding=10, context_tokens=5000)
    reason = decide(dispatcher(busy, full), asked(1000))
    assert str(reason) == "full has the best time to a first token of 2: 0.12 s (next busy: 0.95 s)"


def test_of_two_that_are_equally_soon_the_freer_one_takes_it() -> None:
    assert decide(dispatcher(report("a", free_blocks=5000), report("b", free_blocks=5001)), asked(100)).chosen == "b"


def test_instance_without_room_is_taken_only_if_none_has() -> None:
    soon = report("soon", free_blocks=10)
    late = report("late", prefill_tokens=8000)
    reason = decide(dispatcher(soon, late), asked(1000))
    assert (reason.chosen, reason.passed_over) == ("late", 1)
    assert [(one.instance, one.has_room) for one in reason.candidates] == [("late", True), ("soon", False)]
    assert decide(dispatcher(soon, report("late", free_blocks=10, prefill_tokens=8000)), asked(1000)).chosen == "soon"


def test_long_prompt_goes_where_it_holds_up_fewer() -> None:
    few = report("few", running=4, decoding=4, context_tokens=90_000)
    many = report("many", running=40, decoding=40, context_tokens=60_000)
    assert decide(dispatcher(few, many), asked(40)).chosen == "many"
    assert decide(dispatcher(few, many), asked(4000)).chosen == "few"


def test_until_costs_are_known_the_freest_takes_it() -> None:
    unknown = [report("a", step_cost=None, prefill_tokens=9000), report("b", step_cost=None, free_blocks=8000)]
    d = dispatcher(*unknown)
    assert str(decide(d, asked(10))).startswith("a has the best freeness")
    d.on_report(report("b", 2, free_blocks=8000))
    assert str(decide(d, asked(10))).startswith("b has the best time to a first token")


def test_high_request_goes_where_headroom_is() -> None:
    idle, high = report("idle"), report("high", running=3, high_running=1, decoding=3, context_tokens=3000)
    reason = decide(dispatcher(idle, high), asked(10, priority=HIGH))
    assert reason.chosen == "high"
    assert str(reason) == "high has the best freeness of 2: 3000 (next idle: -900)"


def test_reason_of_a_request_without_room_anywhere_is_freeness() -> None:
    soon = report("soon", free_blocks=1000, queued_blocks=990)
    late = report("late", free_blocks=1000, queued_blocks=900, prefill_tokens=8000, waiting=1)
    other = report("other", free_blocks=1000, queued_blocks=950, prefill_tokens=9000, waiting=1)
    reason = decide(dispatcher(soon, other, late), asked(4000))
    assert str(reason) == "late has the best freeness of 3: 100 (next other: 50)"


def test_prompt_goes_where_most_of_it_is_cached() -> None:
    d = dispatcher(*map(report, "abc"), holds={"a": (1,), "b": (1, 2, 3), "c": (9, 2)})
    reason = decide(d, asked(2000, (1, 2, 3, 4)))
    assert str(reason) == (
        "b has the best time to a first token of 3: 0.06 s, 1,500 tokens cached (next a: 0.16 s, 500 tokens cached)"
    )


def test_holder_is_found_among_many_that_are_freer() -> None:
    others = [report(f"o{k}") for k in range(40)]
    holder = report("holder", running=5, decoding=5, context_tokens=5000, free_blocks=4000)
    d = dispatcher(*others, holder, holds={"holder": tuple(range(1, 9))})
    assert decide(d, asked(4100, tuple(range(1, 9)))).chosen == "holder"


def test_of_holders_that_are_equally_soon_the_first_by_rank_takes_it_though_another_holds_a_little_more() -> None:
    cost = StepCost(fixed_ms=10.0, prefill_token_us=20.0, request_us=500.0, context_token_us=1.0)
    idle = [report(f"o{k}", step_cost=cost) for k in range(8)]
    usual: dict[str, Any] = {
        "step_cost": cost,
        "running": 1,
        "decoding": 1,
        "prefill_tokens": 20,
        "prefix_chunk_tokens": 10,
    }
    deepest, freer = report("deepest", free_blocks=8000, **usual), report("freer", free_blocks=8500, **usual)
    ids = tuple(range(1, 100))
    d = dispatcher(*idle, deepest, freer, holds={"deepest": ids, "freer": ids[:98]})
    reason = decide(d, asked(1000, ids))
    assert [(one.instance, one.cached_tokens) for one in reason.candidates[:2]] == [("freer", 980), ("deepest", 990)]


def test_one_token_of_a_prompt_is_computed_in_any_case() -> None:
    d = dispatcher(report("a"), holds={"a": (1, 2)})
    assert decide(d, asked(1000, (1, 2))).candidates[0].cached_tokens == 999


def test_hot_prefix_spreads_once_its_holder_has_enough_to_do() -> None:
    d = dispatcher(*map(report, "abcd"), holds={"a": (1, 2, 3, 4)})
    chosen = [decide(d, asked(2400, (1, 2, 3, 4), name=f"r{k}")).chosen for k in range(40)]
    assert chosen[0] == "a"
    assert len(set(chosen)) == 4


def test_what_is_computed_though_it_is_cached_elsewhere_is_charged_twice() -> None:
    """The holder is a little later, and is taken all the same: else caches are filled with the same again and again."""
    holder = report("holder", prefill_tokens=2500, waiting=1, decoding=2, running=2, context_tokens=2000)
    other = report("other", decoding=2, running=2, context_tokens=2000)
    d = dispatcher(holder, other, holds={"holder": (1, 2, 3, 4)})
    reason = decide(d, asked(2500, (1, 2, 3, 4)))
    assert reason.chosen == "holder"
    assert reason.candidates[0].number > reason.candidates[1].number


def test_burst_of_one_new_prefix_follows_the_first_that_brought_it() -> None:
    d = dispatcher(*map(report, "abcd"))
    chosen = [decide(d, asked(2040, (1, 2, 3, 4), name=f"r{k}")).chosen for k in range(3)]
    assert len(set(chosen)) == 1


def test_what_is_cached_is_booked_as_computed() -> None:
    d = dispatcher(report("a"), holds={"a": (1, 2)})
    decide(d, asked(1200, (1, 2)))
    assert d.snapshot(0.0).instances[0].prefill_tokens == 200


def test_lost_instance_holds_nothing_any_more() -> None:
    d = dispatcher(report("a"), report("b", free_blocks=5000), holds={"b": (1, 2)})
    d.on_removed(InstanceId("b"))
    assert d.on_prefixes(InstanceId("b"), PrefixNews(2, (7,)))
    assert decide(d, asked(1200, (1, 2))).candidates[0].cached_tokens == 0


def test_without_prefixes_nobody_asks_for_their_names() -> None:
    assert dispatcher(report("a")).prefix_chunk_tokens == 500
    assert dispatcher(report("a"), prefix=False).prefix_chunk_tokens == 0
    assert dispatcher(report("a"), policy="llumnix-paper").prefix_chunk_tokens == 0


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [("dynamo-kv", "held"), ("llm-d-prefix", "held"), ("lmetric", "idle"), ("cache-aware", "held")],
)
def test_routers_weigh_a_long_match_against_load_each_in_its_way(policy: str, chosen: str) -> None:
    held = report("held", running=20, decoding=20, free_blocks=8950, prefill_tokens=400)
    idle = report("idle", free_blocks=8990)
    d = dispatcher(held, idle, holds={"held": (1, 2, 3, 4)}, policy=policy)
    assert decide(d, asked(2100, (1, 2, 3, 4))).chosen == chosen


def test_dynamos_rule_counts_what_is_to_be_computed_as_memory_too() -> None:
    """As if held already, from when it is sent there: 700 blocks that wait outweigh 1,000 that are held."""
    waiting = report("waiting", free_blocks=10_000, waiting=1, queued_blocks=700, prefill_tokens=16 * 700)
    held = report("held")
    assert decide(dispatcher(waiting, held, policy="dynamo-kv"), asked(1600)).chosen == "held"
    d = dispatcher(report("a"), report("b"), policy="dynamo-kv")
    first = decide(d, asked(1600, name="first"))
    second = decide(d, asked(1600, name="second"))
    assert [one.number for one in second.candidates] == [first.candidates[0].number, first.candidates[0].number + 200]


def test_dynamos_rule_takes_a_cached_beginning_for_one_that_somebody_holds_there() -> None:
    holder, idle = report("holder", free_blocks=9850), report("idle", free_blocks=10_000)
    d = dispatcher(holder, idle, holds={"holder": (1, 2, 3)}, policy="dynamo-kv")
    reason = decide(d, asked(3000, (1, 2, 3)))
    assert [(one.instance, one.number) for one in reason.candidates] == [("holder", 2 * 93.75 + 150), ("idle", 375.0)]


def test_cache_aware_rule_forgets_prefixes_when_loads_are_uneven_or_the_match_is_short() -> None:
    def chosen(running: int, chunks: tuple[int, ...]) -> str:
        d = dispatcher(report("held", running=running), report("idle"), holds={"held": (1,)}, policy="cache-aware")
        return decide(d, asked(1600, chunks)).chosen

    assert chosen(60, (1,)) == "held"
    assert chosen(70, (1,)) == "idle"
    d = dispatcher(report("held", running=60), report("idle"), holds={"held": (1,)}, policy="cache-aware")
    assert decide(d, asked(1700, (1, 2, 3))).chosen == "idle", "500 of 1,700 tokens"
