"""A request that is sent to an instance for prompts: where it goes with its first token is said with it."""

from __future__ import annotations

from typing import Any

import pytest

from llumnix.config import PolicyConfig
from llumnix.control.front_end import FrontEndMachine
from llumnix.control.front_end_events import (
    Aborted,
    Arrived,
    Closed,
    Departed,
    Equipped,
    Finished,
    FrontEndEvent,
    NeededAdapter,
    Noticed,
    ReplayAt,
    Reported,
    SendTo,
    TurnedAway,
    Unsent,
)
from llumnix.control.homes import REMEMBERED, Homes
from llumnix.control.messages import Adopted, Stayed
from llumnix.control.moves import MOVE_DEADLINE_S
from llumnix.control.onward import TAKERS_TRIED
from llumnix.control.orders import MoveCause, MoveId, MoveOrder
from llumnix.policy.snapshot import STANDING_S, InstanceSnapshot, RequestSnapshot, StepCost
from llumnix.policy.victim import Wanted
from llumnix.types import NORMAL, Epoch, InstanceId, RequestId, RequestState, Role
from move_outcomes import outcome

P, D, E = InstanceId("p"), InstanceId("d"), InstanceId("e")
R = RequestId("r")
ROOM: dict[str, Any] = {"total_blocks": 100, "free_blocks": 100, "block_tokens": 16, "seq": 1, "at": 0.0}


class FrontEnd:
    def __init__(self, config: PolicyConfig | None = None, **roles: Role) -> None:
        self.machine = FrontEndMachine(PolicyConfig() if config is None else config)
        self.seq = 1
        self.at_s = 0.0
        for name, role in roles.items():
            self.report(InstanceId(name), role=role)

    def report(self, instance: InstanceId, **fields: Any) -> list[Any]:
        self.seq += 1
        return self.tell(Reported, InstanceSnapshot(id=instance, **{**ROOM, "seq": self.seq, **fields}))

    def tell(self, kind: type[FrontEndEvent], *about: Any, **more: Any) -> list[Any]:
        return self.machine.handle(kind(self.at_s, *about, **more))

    def send(self, name: str = R, tokens: int = 60, **more: Any) -> SendTo:
        (sent,) = self.tell(Arrived, RequestId(name), tokens, only_on=(P,), **more)
        assert isinstance(sent, SendTo)
        return sent

    def home_of(self, name: str, tokens: int = 60, **more: Any) -> str | None:
        onward = self.send(name, tokens, **more).onward
        return None if onward is None else onward.target


def test_it_is_told_where_tokens_are_made() -> None:
    order = FrontEnd(p=Role.PREFILL, d=Role.DECODE).send().onward
    assert order is not None
    assert (order.request, order.target, order.cause) == (R, D, MoveCause.DECODE)
    assert order.is_onward
    assert order.reason == "tokens are made at d, where 4 blocks are kept for them"


def test_it_stays_where_tokens_are_made_too_and_where_nobody_can_take_it() -> None:
    assert FrontEnd(p=Role.MIXED, d=Role.DECODE).home_of(R) is None
    assert FrontEnd(p=Role.PREFILL, d=Role.PREFILL).home_of(R) is None
    assert FrontEnd(p=Role.PREFILL).home_of(R) is None
    assert FrontEnd(PolicyConfig(migration=False), p=Role.PREFILL, d=Role.DECODE).home_of(R) is None
    assert FrontEnd(PolicyConfig(policy="round-robin"), p=Role.PREFILL, d=Role.DECODE).home_of(R) is None
    front = FrontEnd(p=Role.PREFILL)
    front.report(D, role=Role.DECODE, free_blocks=3)
    assert front.home_of(R) is None


def test_those_for_tokens_are_found_behind_however_many_that_compute_prompts() -> None:
    """Without a target for the time between tokens they come after all others by rank."""
    front = FrontEnd(p=Role.PREFILL, t=Role.DECODE)
    for number in range(2 * TAKERS_TRIED):
        front.report(InstanceId(f"m{number:02}"), role=Role.MIXED)
    assert front.home_of(R) == "t"


def test_it_does_not_go_where_an_engine_stands_still() -> None:
    front = FrontEnd(p=Role.PREFILL, d=Role.DECODE, e=Role.MIXED)
    assert front.home_of("before") == D
    front.report(D, role=Role.DECODE, standing_s=STANDING_S)
    assert front.home_of(R) == E


def test_it_does_not_go_where_its_adapter_is_missing() -> None:
    front = FrontEnd(p=Role.PREFILL, d=Role.DECODE, e=Role.MIXED)
    front.tell(Equipped, D, (1,))
    assert front.home_of(R, adapter=NeededAdapter(1, "south")) == E


def test_room_is_given_once() -> None:
    """60 tokens take 4 blocks, and a mixed one comes last."""
    front = FrontEnd(p=Role.PREFILL, e=Role.MIXED)
    front.report(D, role=Role.DECODE, free_blocks=9)
    assert [front.home_of(name) for name in "abc"] == [D, D, E]
    front.report(D, role=Role.DECODE, free_blocks=1, incoming=2)
    assert front.home_of("x") == E, "they have reserved it"
    front.report(D, role=Role.DECODE, free_blocks=5, incoming=1)
    assert front.home_of("y") == E, "one of the two has"
    front.report(D, role=Role.DECODE, free_blocks=9)
    assert front.home_of("z") == E, "none of them has yet"


def test_one_for_tokens_is_not_turned_down_for_what_steps_cost_elsewhere() -> None:
    front = FrontEnd(d=Role.DECODE)
    slow = StepCost(fixed_ms=500.0, prefill_token_us=100.0, request_us=0.0, context_token_us=0.0)
    front.report(D, role=Role.DECODE, tpot_target_s=0.1)
    front.report(P, role=Role.PREFILL, step_cost=slow)
    assert front.home_of(R) == D
    front.report(D, role=Role.DECODE, tpot_target_s=0.1, step_cost=slow)
    assert front.home_of("x") is None


ADOPTED = Adopted(request=R, epoch=Epoch(1), sender=D, source=P, output_tokens=1)
STAYED = Stayed(request=R, epoch=Epoch(1), sender=P, outcome=outcome(P, D, R, "refused: no room"))


@pytest.mark.parametrize(
    ("kind", "about"),
    [
        (Noticed, (ADOPTED,)),
        (Noticed, (STAYED,)),
        (Finished, (R,)),
        (Aborted, (R,)),
        (Unsent, (R,)),
        (TurnedAway, (P, R)),
        (Closed, (P,)),
        (Departed, (P,)),
        (Reported, (InstanceSnapshot(id=P, **{**ROOM, "seq": 99}),)),
    ],
    ids=["went", "stays", "ended", "was aborted", "was not sent", "turned away", "closed", "lost", "prompts no more"],
)
def test_room_that_was_kept_for_it_is_free_when_it_does_not_come_any_more(kind: Any, about: tuple[Any, ...]) -> None:
    front = FrontEnd(p=Role.PREFILL, d=Role.DECODE)
    front.send()
    onward = front.machine._placing.onward
    assert onward._moves.incoming(D) == 1
    front.tell(kind, *about)
    assert (len(onward._moves), onward._asked) == (0, {})


def test_room_is_not_kept_for_ever_for_one_of_which_nothing_is_heard() -> None:
    """The word that it goes there was lost, or it was refused before anything was begun: no notice tells of that."""
    front = FrontEnd(p=Role.PREFILL, d=Role.DECODE)
    onward = front.machine._placing.onward
    front.send("a")
    front.at_s = 1.0
    front.send("b")
    front.at_s = MOVE_DEADLINE_S
    front.report(D, role=Role.DECODE)
    assert list(onward._asked) == ["b"]
    assert onward._moves.promised_blocks(D, arrived=0) == 4
    front.at_s += 1.0
    front.report(D, role=Role.DECODE)
    assert (len(onward._moves), onward._asked) == (0, {})
    front.tell(Finished, RequestId("a"))
    assert len(onward._moves) == 0, "it is forgotten once"


def test_room_is_kept_from_when_it_is_sent_however_long_it_waited_for_a_place() -> None:
    front = FrontEnd(d=Role.DECODE)
    front.tell(Arrived, R, 60, only_on=(P,), may_wait=True)
    front.at_s = 2 * MOVE_DEADLINE_S
    (sent,) = front.report(P, role=Role.PREFILL)
    assert sent.onward.target == D
    front.report(D, role=Role.DECODE)
    assert front.machine._placing.onward._moves.incoming(D) == 1


def test_it_begins_anew_without_an_order() -> None:
    """Reports tell of it when it decodes."""
    front = FrontEnd(p=Role.PREFILL, d=Role.DECODE)
    front.send()
    front.report(E, role=Role.PREFILL)
    commands = front.tell(Departed, P)
    assert [type(each) for each in commands] == [ReplayAt]
    assert len(front.machine._placing.onward._moves) == 0


# where it is told


ORDER = MoveOrder(
    move_id=MoveId("m"), target=D, cause=MoveCause.DECODE, reason="", request=R, wanted=Wanted(to_decode=True)
)


def running(**facts: Any) -> RequestSnapshot:
    usual: dict[str, Any] = {"priority": NORMAL, "arrival_s": 0.0, "output_tokens": 0}
    usual |= {"id": R, "state": RequestState.RUNNING, "held_blocks": 4, "needed_blocks": 4, "length_blocks": 4}
    return RequestSnapshot(**{**usual, **facts})


def told() -> Homes:
    homes = Homes()
    assert homes.told(ORDER) == R
    return homes


def test_order_is_heard_when_its_prompt_begins_to_be_computed_and_once() -> None:
    homes = told()
    event = homes.begins(7.0, running(), Role.PREFILL)
    assert event is not None
    assert (event.at, event.order, event.candidates) == (7.0, ORDER, (running(),))
    assert homes.begins(8.0, running(), Role.PREFILL) is None


@pytest.mark.parametrize("role", [Role.MIXED, Role.DECODE])
def test_it_makes_its_tokens_where_it_is_if_that_is_not_for_prompts_any_more(role: Role) -> None:
    assert told().begins(7.0, running(), role) is None


def test_it_does_not_move_for_its_last_token_or_while_it_waits() -> None:
    assert told().begins(7.0, running(remaining_tokens=1), Role.PREFILL) is None
    assert told().begins(7.0, running(state=RequestState.WAITING), Role.PREFILL) is None


def test_order_is_forgotten_with_its_request_and_with_its_target() -> None:
    homes = told()
    homes.lost(E)
    assert R in homes
    homes.lost(D)
    assert R not in homes
    homes = told()
    homes.forget(R)
    assert R not in homes


def test_orders_of_requests_that_never_come_are_few() -> None:
    homes = told()
    for number in range(REMEMBERED):
        homes.told(MoveOrder(**{**_fields(ORDER), "request": RequestId(f"r{number}")}))
    assert R not in homes
    assert RequestId("r0") in homes


def _fields(order: MoveOrder) -> dict[str, Any]:
    return {name: getattr(order, name) for name in order.__struct_fields__}
