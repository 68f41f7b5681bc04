"""A front end's mind: where requests go, and how their streams go on when instances do not."""

from __future__ import annotations

from typing import Any

import pytest

from llumnix.config import PolicyConfig
from llumnix.control.front_end import FrontEndMachine
from llumnix.control.front_end_events import (
    Abort,
    Aborted,
    Arrived,
    AskPrefixes,
    Broken,
    Closed,
    Deliver,
    Departed,
    Doubted,
    DriveOut,
    DroveOut,
    Equipped,
    Finished,
    FrontEndCommand,
    FrontEndEvent,
    GiveUp,
    NeededAdapter,
    Noticed,
    Outputs,
    Park,
    PrefixesTold,
    ReplayAt,
    Reported,
    SendTo,
    TellVerdict,
    TurnedAway,
    Unsent,
)
from llumnix.control.messages import FRONT_END, Adopted, Doubt, Moved, Verdict
from llumnix.control.prefix_table import PrefixNews
from llumnix.policy.snapshot import InstanceSnapshot, StepCost
from llumnix.types import Epoch, InstanceId, InstanceState, RequestId, Role
from move_outcomes import outcome

A, B, C = InstanceId("a"), InstanceId("b"), InstanceId("c")
R, R1, R2 = RequestId("r"), RequestId("r~1"), RequestId("r~2")
SOUTH = NeededAdapter(1, "south")


class Driver:
    """Tells it what happens, and hands on what the owner of a stream says, as a driver does."""

    def __init__(self, *instances: InstanceId, **options: Any) -> None:
        self.machine = FrontEndMachine(PolicyConfig(), **options)
        self.seq = 0
        for instance in instances:
            self.report(instance)

    def tell(self, kind: type[FrontEndEvent], *about: Any, **more: Any) -> list[FrontEndCommand]:
        return self.machine.handle(kind(0.0, *about, **more))

    def report(self, instance: InstanceId, **fields: Any) -> list[FrontEndCommand]:
        self.seq += 1
        room = {"total_blocks": 100, "free_blocks": 100}
        return self.tell(Reported, InstanceSnapshot(id=instance, seq=self.seq, at=0.0, **room | fields))

    def arrive(self, request: str = R, **fields: Any) -> InstanceId:
        (sent,) = self.tell(Arrived, RequestId(request), 16, **fields)
        assert isinstance(sent, SendTo)
        assert sent.request == request
        return sent.instance

    def speak(self, request: RequestId = R, tokens: int = 1) -> None:
        """On the short way."""
        stream = self.machine.stream(request)
        assert stream is not None
        assert stream.live is not None
        stream.delivered_tokens += tokens

    def waiting(self, instance: InstanceId) -> int:
        """There, as the ledger has it."""
        views = {view.id: view.waiting for view in self.machine.dispatcher.snapshot(0.0).instances}
        return views[instance]


def adopted(sender: InstanceId, tokens: int, request: RequestId = R) -> Adopted:
    return Adopted(request=request, epoch=Epoch(1), sender=sender, source=A, output_tokens=tokens)


def moved(sender: InstanceId, target: InstanceId, request: RequestId = R) -> Moved:
    return Moved(request=request, epoch=Epoch(1), sender=sender, outcome=outcome(sender, target))


def verdict(to: InstanceId, owner: InstanceId) -> TellVerdict:
    return TellVerdict(to, Verdict(request=R, epoch=Epoch(1), sender=FRONT_END, owner=owner))


def only(kind: type, commands: list[FrontEndCommand]) -> Any:
    (found,) = [command for command in commands if isinstance(command, kind)]
    return found


def test_requests_are_spread_by_what_was_sent_and_say_why() -> None:
    front = Driver(A, B)
    (sent,) = front.tell(Arrived, R, 16)
    assert isinstance(sent, SendTo)
    assert sent.instance == A
    assert "best freeness of 2" in str(sent.reason)
    assert front.arrive("s") == B


def test_request_without_a_place_is_given_up_or_waits_as_it_asks_to() -> None:
    front = Driver()
    assert front.tell(Arrived, R, 16) == [GiveUp(R, "No instance can take the request now.")]
    assert front.tell(Arrived, R, 16, may_wait=True) == [Park(R, "no instance can take it")]
    assert front.machine.parked == 1
    sent = only(SendTo, front.report(A))
    assert (sent.request, sent.instance) == (R, A)
    assert front.machine.parked == 0
    assert front.report(A) == []


def test_those_that_wait_are_placed_in_their_order_and_parked_once() -> None:
    front = Driver()
    for name in ("z", "b", "k"):
        front.tell(Arrived, RequestId(name), 16, may_wait=True)
    assert front.report(A, state=InstanceState.DRAINING) == []
    assert front.machine.parked == 3
    assert [command.request for command in front.report(B)] == ["z", "b", "k"]  # type: ignore[union-attr]


def test_client_may_say_where_it_begins_but_not_where_it_goes_on() -> None:
    front = Driver(A, B)
    assert [front.arrive(f"r{n}", only_on=(B,)) for n in range(3)] == [B] * 3
    assert [command.instance for command in front.tell(Departed, B)] == [A] * 3  # type: ignore[union-attr]
    assert front.tell(Arrived, R, 16, only_on=(B,)) == [GiveUp(R, "No instance can take the request now.")]


def test_request_that_could_not_be_sent_is_not_charged() -> None:
    front = Driver(A)
    front.arrive()
    assert front.waiting(A) == 1
    assert front.tell(Unsent, R) == []
    assert front.waiting(A) == 0
    assert front.machine.stream(R) is None


def test_without_a_ledger_nothing_is_charged_until_it_is_reported() -> None:
    front = Driver(A, B, ledger=False)
    assert {front.arrive(f"r{n}") for n in range(4)} == {A}
    assert front.waiting(A) == 0


def test_lost_stream_goes_on_elsewhere_behind_what_the_client_has() -> None:
    front = Driver(A, B)
    assert front.arrive() == A
    front.speak(tokens=2)
    (replay,) = front.tell(Departed, A)
    assert isinstance(replay, ReplayAt)
    assert (replay.request, replay.new_id, replay.instance, replay.delivered_tokens) == (R, R1, B, 2)
    assert replay.why == "a was lost"
    assert "best freeness" in str(replay.reason)
    assert front.machine.stream(R) is None
    stream = front.machine.stream(R1)
    assert stream is not None
    assert (stream.live, stream.delivered_tokens) == (B, 2)


def test_old_stream_is_nobodys_from_then_on() -> None:
    front = Driver(A, B)
    front.arrive()
    old = front.machine.stream(R)
    assert old is not None
    front.tell(Departed, A)
    assert old.live is None
    assert front.tell(Outputs, A, R, 1, ("late",)) == []
    assert front.machine.dropped == 1


def test_each_replay_has_a_name_of_its_own() -> None:
    front = Driver(A, B, C)
    first = front.arrive()
    second = only(ReplayAt, front.tell(Departed, first)).instance
    again = only(ReplayAt, front.tell(Departed, second))
    assert (again.request, again.new_id, again.instance) == (R1, R2, C)


def test_lost_stream_is_parked_until_an_instance_comes() -> None:
    front = Driver(A)
    front.arrive()
    front.speak()
    assert front.tell(Departed, A) == [Park(R, "a was lost")]
    assert front.machine.stream(R) is None
    replay = only(ReplayAt, front.report(B))
    assert (replay.request, replay.new_id, replay.delivered_tokens, replay.why) == (R, R1, 1, "a was lost")


def test_lost_stream_that_no_instance_ever_had_memory_for_is_given_up() -> None:
    """It would wait for ever."""
    front = Driver(A)
    front.arrive()
    front.speak(tokens=100 * 16)
    why = "a was lost; no instance ever had memory for its 1616 tokens so far"
    assert front.tell(Departed, A) == [GiveUp(R, why)]


def test_lost_stream_that_is_too_long_for_all_but_the_one_it_was_on_waits_for_its_successor() -> None:
    front = Driver(A)
    front.report(B, total_blocks=1, watermark_blocks=1)
    front.arrive()
    front.speak()
    assert front.tell(Departed, A) == [Park(R, "a was lost")]
    assert front.report(B, total_blocks=1, watermark_blocks=1) == []
    assert isinstance(only(ReplayAt, front.report(C)), ReplayAt)


def test_client_that_leaves_while_its_request_waits_is_forgotten() -> None:
    front = Driver(A)
    front.arrive()
    front.tell(Departed, A)
    assert front.tell(Aborted, R) == []
    assert front.report(B) == []
    assert front.machine.parked == 0


def test_stream_that_said_nothing_can_always_start_again() -> None:
    front = Driver(A, B)
    front.arrive(not_exact="its dice are lost")
    assert only(ReplayAt, front.tell(Departed, A)).delivered_tokens == 0


def test_stream_that_cannot_be_continued_exactly_is_given_up_with_the_reason() -> None:
    front = Driver(A, B)
    front.arrive(not_exact="its dice are lost")
    front.speak()
    why = "a was lost; the stream cannot be continued exactly: its dice are lost"
    assert front.tell(Departed, A) == [GiveUp(R, why)]


def test_request_that_ends_one_instance_after_the_other_is_given_up() -> None:
    front = Driver(*(InstanceId(f"i{n}") for n in range(5)))
    at, name = front.arrive(), R
    for _ in range(3):
        replay = only(ReplayAt, front.tell(Departed, at))
        at, name = replay.instance, replay.new_id
    (end,) = front.tell(Departed, at)
    assert isinstance(end, GiveUp)
    assert (end.request, "lost 3 times in a row" in end.why) == (name, True)


def test_token_shows_that_an_instance_bears_the_request() -> None:
    front = Driver(*(InstanceId(f"i{n}") for n in range(6)))
    at = front.arrive()
    for turn in range(4):
        replay = only(ReplayAt, front.tell(Departed, at))
        at = replay.instance
        if turn == 2:
            front.speak(replay.new_id)
    assert replay.new_id == "r~4"


def test_owner_lost_in_a_move_that_got_through_is_succeeded_by_its_target() -> None:
    front = Driver(A, B)
    front.arrive()
    front.speak(tokens=2)
    front.tell(Noticed, adopted(B, 3))
    assert front.tell(Outputs, B, R, 1, ("4th",)) == []
    front.speak()
    assert front.tell(Departed, A) == [verdict(B, B), Deliver(R, ("4th",))]
    stream = front.machine.stream(R)
    assert stream is not None
    assert (stream.live, stream.delivered_tokens) == (B, 4)


def test_last_output_that_was_held_ends_the_request() -> None:
    front = Driver(A, B)
    front.arrive()
    front.tell(Noticed, adopted(B, 1))
    front.tell(Outputs, B, R, 1, ("all",), last=True)
    front.speak()
    assert front.tell(Noticed, moved(A, B)) == [verdict(B, B), Deliver(R, ("all",))]
    assert front.machine.stream(R) is None
    assert front.tell(Departed, B) == []


def test_doubt_is_answered_as_soon_as_it_can_be() -> None:
    front = Driver(A, B)
    front.arrive()
    front.tell(Noticed, adopted(B, 1))
    ask = Doubt(request=R, epoch=Epoch(1), sender=A, target=B)
    assert front.tell(Doubted, ask) == [verdict(A, B), verdict(B, B)]


def test_request_that_an_ending_engine_turns_away_goes_elsewhere_and_so_do_new_ones() -> None:
    front = Driver(A, B)
    assert front.arrive() == A
    abort, replay = front.tell(TurnedAway, A, R)
    assert abort == Abort(A, R)
    assert isinstance(replay, ReplayAt)
    assert (replay.instance, replay.why) == (B, "a was stopped")
    assert [front.arrive(f"r{n}") for n in range(3)] == [B] * 3


def test_closed_instance_is_heard_to_its_end() -> None:
    front = Driver(A, B)
    assert front.arrive() == A
    assert front.tell(Closed, A) == []
    assert front.arrive("s") == B
    assert front.tell(Outputs, A, R, 1, ("still",)) == [Deliver(R, ("still",))]
    assert isinstance(front.tell(Departed, A, complete=True)[0], ReplayAt)


def test_engine_that_cannot_take_up_a_stream_ends_it() -> None:
    front = Driver(A, B)
    front.arrive()
    front.speak()
    front.tell(Departed, A)
    ends = [Abort(B, R1), GiveUp(R1, "its grammar does not fit")]
    assert front.tell(Broken, R1, "its grammar does not fit") == ends
    assert front.tell(Broken, R1, "its grammar does not fit") == []


def test_driven_out_streams_go_on_elsewhere_and_the_rest_stays() -> None:
    front = Driver(A, B)
    assert [front.arrive(name, only_on=(A,), not_exact=why) for name, why in (("r", ""), ("s", "dice"))] == [A, A]
    front.speak()
    front.speak(RequestId("s"))
    front.report(A, state=InstanceState.DRAINING)
    abort, replay, answer = front.tell(DriveOut, A, "it drains")
    assert (abort, answer) == (Abort(A, R), DroveOut(A, 1))
    assert isinstance(replay, ReplayAt)
    assert (replay.instance, replay.delivered_tokens, replay.why) == (B, 1, "it drains")
    assert front.machine.stream(RequestId("s")) is not None


def test_to_be_driven_out_is_no_sign_that_a_request_ends_instances() -> None:
    front = Driver(A, B)
    at, name = front.arrive(), R
    for _ in range(5):
        replay = only(ReplayAt, front.tell(DriveOut, at, "it drains"))
        at, name = replay.instance, replay.new_id
    assert name == "r~5"


@pytest.mark.parametrize("other", [None, InstanceState.DRAINING])
def test_nobody_is_driven_out_without_a_place_to_go(other: InstanceState | None) -> None:
    front = Driver(A)
    front.arrive()
    if other is not None:
        front.report(B, state=other)
    assert front.tell(DriveOut, A, "it drains") == [DroveOut(A, 0)]
    assert front.machine.stream(R) is not None


def test_who_needs_an_adapter_is_not_driven_out_where_no_other_instance_has_it() -> None:
    front = Driver(A, B)
    front.tell(Equipped, B, (SOUTH.id,))
    front.arrive(adapter=SOUTH)
    assert front.tell(DriveOut, A, "it drains") == [DroveOut(A, 0)]
    front.tell(Equipped, B, ())
    front.report(A, state=InstanceState.DRAINING)
    assert only(ReplayAt, front.tell(DriveOut, A, "it drains")).instance == B


def test_who_has_grown_longer_than_the_others_have_memory_for_is_not_driven_out() -> None:
    front = Driver(A)
    front.report(B, total_blocks=2, free_blocks=2)
    front.arrive(only_on=(A,))
    front.speak(tokens=17)
    assert front.tell(DriveOut, A, "it drains") == [DroveOut(A, 0)]


def test_what_runs_nowhere_is_over_however_late_it_is_heard_of() -> None:
    front = Driver(A, B)
    front.arrive()
    assert front.tell(Finished, R) == []
    for event in (Finished(0.0, R), Aborted(0.0, R), TurnedAway(0.0, C, R), Broken(0.0, R, "")):
        assert front.machine.handle(event) == []
    assert front.tell(Noticed, moved(A, B)) == [Abort(B, R)]


def test_requests_with_an_adapter_go_to_who_has_it() -> None:
    front = Driver(A, B)
    front.tell(Equipped, B, (SOUTH.id,))
    assert {front.arrive(f"r{n}", adapter=SOUTH) for n in range(3)} == {A}
    assert {front.arrive(f"s{n}", adapter=NeededAdapter(2, "west")) for n in range(6)} == {A, B}
    front.tell(Equipped, B, ())
    assert B in {front.arrive(f"t{n}", adapter=SOUTH) for n in range(2)}


def test_nobody_can_load_an_adapter() -> None:
    front = Driver(A)
    front.arrive(adapter=SOUTH)
    front.report(B)
    front.tell(Equipped, B, (SOUTH.id,))
    assert front.tell(Departed, A) == [GiveUp(R, "a was lost; no instance can load its adapter 'south'")]
    refused = front.tell(Arrived, R, 16, adapter=SOUTH)
    assert refused == [GiveUp(R, "No instance can load the adapter 'south' now.")]


def test_stream_waits_while_nobody_is_there_who_could_lack_its_adapter() -> None:
    front = Driver(A)
    front.arrive(adapter=SOUTH)
    assert front.tell(Departed, A) == [Park(R, "a was lost")]
    front.tell(Equipped, B, (SOUTH.id,))
    assert only(GiveUp, front.report(B)).request == R


def test_instance_that_loads_an_adapter_at_last_takes_those_that_wait_for_it() -> None:
    front = Driver(A, B)
    front.tell(Equipped, A, (SOUTH.id,))
    front.report(B, state=InstanceState.DRAINING)
    assert front.tell(Arrived, R, 16, adapter=SOUTH, may_wait=True) == [Park(R, "no instance can take it")]
    assert only(SendTo, front.tell(Equipped, A, ())).instance == A


def test_late_news_of_a_gone_instance_are_not_kept() -> None:
    front = Driver(A, B)
    front.tell(Departed, A)
    assert front.tell(Equipped, A, (SOUTH.id,)) == []
    assert front.report(A) == []
    assert front.arrive(adapter=SOUTH) == B


def test_counts_come_with_the_events_that_depend_on_them() -> None:
    """So that a recording, in which nobody counts on the short way, is replayed exactly."""
    front = Driver(A, B)
    front.arrive()
    front.arrive("s")
    front.speak(tokens=7)
    seen: list[dict[RequestId, int]] = []
    front.machine.record = lambda event, commands, delivered: seen.append(delivered)
    front.tell(Noticed, adopted(B, 8))
    front.speak()
    front.tell(Departed, A)
    front.report(B)
    assert seen == [{R: 7}, {R: 8}, {}]
    again = Driver(A, B)
    again.arrive()
    again.machine.counted({R: 7, RequestId("unknown"): 1})
    assert only(ReplayAt, again.tell(Departed, A)).delivered_tokens == 7


def test_instance_that_is_new_to_a_front_end_is_asked_once_what_it_has_cached() -> None:
    """It may have served others for long, and says nothing while it is idle."""
    front = Driver()
    assert front.report(A) == [], "it does not tell of prefixes"
    assert [front.report(B, prefix_chunk_tokens=500) for _ in range(2)] == [[AskPrefixes(B)], []]
    front.tell(Departed, B)
    assert front.report(B, prefix_chunk_tokens=500) == []
    blind = FrontEndMachine(PolicyConfig(prefix=False))
    tells = InstanceSnapshot(id=C, seq=1, at=0.0, total_blocks=9, free_blocks=9, prefix_chunk_tokens=500)
    assert blind.handle(Reported(0.0, tells)) == []


def test_request_had_best_move_where_most_of_its_prompt_is_cached_and_there_is_room_for_it() -> None:
    ids = {name: InstanceId(name) for name in ("own", "little", "much", "full", "no-adapter", "free")}
    cost = StepCost(fixed_ms=10.0, prefill_token_us=100.0, request_us=500.0, context_token_us=1.0)
    can = {"step_cost": cost, "step_tokens": 2048, "prefix_chunk_tokens": 500}
    front = Driver()

    def report(name: str, **load: int) -> None:
        front.report(ids[name], **{"total_blocks": 1000, "free_blocks": 900, **can, **load})

    report("own")
    front.tell(Equipped, ids["no-adapter"], (SOUTH.id,))
    (sent,) = front.tell(Arrived, R, 2000, adapter=SOUTH, chunks=(1, 2, 3, 4))
    assert isinstance(sent, SendTo)
    assert sent.instance == "own"
    for name in ids:
        report(name, free_blocks=100 if name == "full" else 900, prefill_tokens=3000 if name == "much" else 0)
    for name, held in (("little", 2), ("much", 3), ("full", 4), ("no-adapter", 4), ("own", 4)):
        front.tell(PrefixesTold, ids[name], PrefixNews(1, tuple(range(1, held + 1)), whole=True))
    assert front.machine.best_places(R, 3) == ("much", "little", "free"), (
        "the prompts that wait there do not concern it"
    )
    assert front.machine.best_places(R, 1) == ("much",)
    assert front.machine.best_places(R1, 3) == ()
    assert front.machine.where_cached(ids["own"]) == {R: "much"}
    assert front.machine.where_cached(ids["little"]) == {}, "it has none of ours"
    for name in ("much", "little"):
        front.tell(Closed, ids[name])
    assert front.machine.where_cached(ids["own"]) == {}, "who has it cached has no room, or lacks the adapter"
    front.tell(Closed, ids["free"])
    assert front.machine.best_places(R, 3) == ("full",), "it may refuse"


def test_request_that_decodes_does_not_move_to_an_instance_for_prompts() -> None:
    own, prompts, tokens = (InstanceId(name) for name in ("own", "prompts", "tokens"))
    front = Driver(own)
    front.arrive()
    front.report(prompts, role=Role.PREFILL)
    assert front.machine.best_places(R, 3) == (prompts,), "its prompt may as well be computed there"
    front.speak()
    assert front.machine.best_places(R, 3) == (), "it would come back"
    front.report(tokens, role=Role.DECODE)
    assert front.machine.best_places(R, 3) == (tokens,)


def test_request_that_waits_moves_to_an_instance_for_tokens_only_if_there_is_no_other() -> None:
    own, prompts, tokens = (InstanceId(name) for name in ("own", "prompts", "tokens"))
    cost = StepCost(fixed_ms=10.0, prefill_token_us=100.0, request_us=500.0, context_token_us=1.0)
    front = Driver()
    for name, load in ((own, {}), (prompts, {"free_blocks": 0}), (tokens, {"role": Role.DECODE})):
        front.report(name, **{"total_blocks": 100, "free_blocks": 100, "step_cost": cost, **load})
    (sent,) = front.tell(Arrived, R, 100, only_on=(own,))
    assert isinstance(sent, SendTo)
    assert front.machine.best_places(R, 3) == (prompts,)
    front.tell(Closed, prompts)
    assert front.machine.best_places(R, 3) == (tokens,)


def test_request_that_decodes_moves_to_an_instance_for_tokens_that_has_room() -> None:
    own, mixed, tokens = (InstanceId(name) for name in ("own", "mixed", "tokens"))
    cost = StepCost(fixed_ms=10.0, prefill_token_us=100.0, request_us=500.0, context_token_us=1.0)
    front = Driver()
    front.report(own, total_blocks=100, free_blocks=100, step_cost=cost)
    front.arrive()
    front.speak()
    for name, load in ((mixed, {"free_blocks": 0}), (tokens, {"role": Role.DECODE})):
        front.report(name, **{"total_blocks": 100, "free_blocks": 100, "step_cost": cost, **load})
    assert front.machine.best_places(R, 3) == (tokens,)
