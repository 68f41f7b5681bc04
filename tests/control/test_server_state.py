"""What the whole server is in: what an instance that starts now has to do to be where the others are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.control.server_state import (
    Adapter,
    Op,
    ServerState,
    after,
    awake,
    undone,
    with_adapter_id_taken,
    with_adapters,
)

PAUSE, RESUME = Op("pause_scheduler", ("keep", True)), Op("resume_scheduler")
SLEEP, NAP = Op("sleep", (1, "abort")), Op("sleep", (0, "keep"))
WAKE, WAKE_WEIGHTS = Op("wake_up", (None,)), Op("wake_up", (["weights"],))
RELEASE = Op("release_kv_cache_memory")
START, STOP = Op("profile", (True, "x", None, None)), Op("profile", (False, None, None, None))
OPS = [PAUSE, RESUME, SLEEP, NAP, WAKE, WAKE_WEIGHTS, RELEASE, START, STOP, Op("reset_mm_cache")]
OPS += [Op("pause_scheduler", ("abort", False)), Op("sleep", (2, "wait")), Op("wake_up", (["kv_cache"],))]
OPS += [Op("wake_up", ([f"nonsense-{n}"],)) for n in range(3)]


def state_after(*ops: Op) -> ServerState:
    state = ServerState()
    for op in ops:
        state = after(state, op)
    return state


@pytest.mark.parametrize(
    ("ops", "activity", "paused", "asleep"),
    [
        ((), (), False, False),
        ((PAUSE,), (PAUSE,), True, True),
        ((PAUSE, PAUSE), (PAUSE,), True, True),
        ((PAUSE, RESUME), (), False, False),
        ((NAP,), (NAP,), True, True),
        ((NAP, RESUME), (), False, False),
        ((PAUSE, WAKE), (), False, False),
        ((SLEEP,), (SLEEP,), True, True),
        ((PAUSE, SLEEP), (SLEEP,), True, True),
        ((SLEEP, WAKE), (), False, False),
        ((SLEEP, WAKE_WEIGHTS), (SLEEP, WAKE_WEIGHTS), True, True),
        ((SLEEP, WAKE_WEIGHTS, WAKE_WEIGHTS), (SLEEP, WAKE_WEIGHTS), True, True),
        ((SLEEP, RESUME), (SLEEP, RESUME), False, True),
        ((SLEEP, RESUME, PAUSE), (SLEEP, PAUSE), True, True),
        ((PAUSE, RELEASE), (PAUSE, RELEASE), True, True),
        ((PAUSE, RELEASE, RELEASE), (PAUSE, RELEASE), True, True),
        ((PAUSE, RELEASE, RESUME), (RELEASE, RESUME), False, True),
        ((PAUSE, RELEASE, WAKE), (), False, False),
        ((PAUSE, Op("reset_prefix_cache", (False, False))), (PAUSE,), True, True),
    ],
)
def test_activity(ops: tuple[Op, ...], activity: tuple[Op, ...], paused: bool, asleep: bool) -> None:
    state = state_after(*ops)
    assert (state.activity, state.paused, state.asleep) == (activity, paused, asleep)
    assert state.version == len(ops)
    assert state.op == (ops[-1] if ops else None)


DEEP = Op("sleep", (2, "wait"))


@pytest.mark.parametrize(
    ("ops", "level"),
    [
        ((), None),
        ((PAUSE,), None),
        ((NAP,), 0),
        ((RELEASE,), 0),
        ((SLEEP,), 1),
        ((SLEEP, NAP), 1),
        ((SLEEP, WAKE_WEIGHTS), 1),
        ((SLEEP, WAKE), None),
        ((DEEP,), 2),
        ((DEEP, PAUSE), 2),
        ((DEEP, WAKE_WEIGHTS, Op("reset_mm_cache")), 2),
        ((DEEP, WAKE), None),
    ],
)
def test_how_deep_it_sleeps(ops: tuple[Op, ...], level: int | None) -> None:
    state = state_after(*ops)
    assert state.sleep_level == level
    assert undone(after(state, WAKE), state).sleep_level == level
    assert awake(state).sleep_level is None


def test_deeper_sleep_is_not_what_later_ones_do_as_nobody_will_tell_them_to_load_their_weights_again() -> None:
    assert state_after(Op("sleep", (2, "abort"))).activity == (Op("sleep", (1, "abort")),)


def test_profiling_lasts_until_it_is_stopped() -> None:
    assert state_after(START, PAUSE).profile == START
    assert state_after(START, PAUSE, STOP).profile is None


def test_change_that_failed_is_taken_back() -> None:
    before = state_after(PAUSE)
    failed = after(before, WAKE)
    back = undone(failed, before)
    assert (back.activity, back.version, back.op) == ((PAUSE,), 3, None)


def test_those_that_were_woken_up_in_parts_are_awake_in_the_end() -> None:
    assert awake(state_after(SLEEP, WAKE_WEIGHTS)).activity == ()


def test_id_of_an_adapter_is_never_used_again() -> None:
    alpha, beta = Adapter(id=1, name="alpha", path="/a"), Adapter(id=2, name="beta", path="/b")
    state = with_adapters(ServerState(), (alpha, beta))
    assert state.last_adapter_id == 2
    assert with_adapters(state, ()).last_adapter_id == 2
    assert with_adapter_id_taken(state, 3).last_adapter_id == 3
    assert with_adapter_id_taken(state, 1).last_adapter_id == 2


@given(st.lists(st.sampled_from(OPS), max_size=60))
def test_it_stays_small_whatever_happens(ops: list[Op]) -> None:
    assert len(state_after(*ops).activity) <= 5
