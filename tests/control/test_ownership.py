"""The front end's side: who owns a stream, what is held, what is dropped, who is told what."""

# Ids are plain strings here, and of what class a command is, the test itself shows.
# mypy: disable-error-code="arg-type, index, type-arg, union-attr"
from __future__ import annotations

from dataclasses import dataclass

import pytest

from llumnix.control.front_end_events import Abort, Deliver, TellVerdict
from llumnix.control.messages import FRONT_END, NOBODY, Adopted, Doubt, Fenced, Moved, Stayed, Verdict
from llumnix.control.ownership import Ownership, Replay
from llumnix.control.told_aborts import ABORTS_REMEMBERED, OUTPUTS_PER_ABORT
from move_outcomes import outcome


@dataclass(eq=False)
class ReplayOf:
    """What a `Replay` says, without what its stream went through."""

    request: str
    delivered_tokens: int
    why: str
    asked_for: bool = False

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Replay):
            return NotImplemented
        said = ReplayOf(other.stream.request, other.stream.delivered_tokens, other.why, other.asked_for)
        return vars(said) == vars(self)

    __hash__ = None  # type: ignore[assignment]


def adopted(sender: str, tokens: int, epoch: int = 1, source: str = "a") -> Adopted:
    return Adopted(request="r", epoch=epoch, sender=sender, source=source, output_tokens=tokens)


def moved(sender: str, target: str, epoch: int = 1) -> Moved:
    return Moved(request="r", epoch=epoch, sender=sender, outcome=outcome(sender, target))


def stayed(sender: str, target: str, epoch: int = 1) -> Stayed:
    return Stayed(request="r", epoch=epoch, sender=sender, outcome=outcome(sender, target, why_not="refused"))


def fenced(sender: str, epoch: int = 1) -> Fenced:
    return Fenced(request="r", epoch=epoch, sender=sender)


def doubt(sender: str, target: str, epoch: int = 1) -> Doubt:
    return Doubt(request="r", epoch=epoch, sender=sender, target=target)


def tell(to: str, owner: str, epoch: int = 1) -> TellVerdict:
    return TellVerdict(to, Verdict(request="r", epoch=epoch, sender=FRONT_END, owner=owner))


@pytest.fixture
def front() -> Ownership:
    """One request on instance a; the client has tokens 1 and 2."""
    ownership = Ownership()
    stream = ownership.opened("r", "a")
    assert stream.live == "a"
    stream.delivered_tokens = 2
    return ownership


def token(front: Ownership, instance: str, value: int) -> list:
    return front.outputs_arrived("r", instance, (value,), 1)


def test_tokens_of_the_target_wait_for_the_last_token_of_the_source(front: Ownership) -> None:
    assert front.notice_arrived(adopted("b", 3)) == []
    assert token(front, "b", 4) == []
    assert token(front, "a", 3) == [Deliver("r", (3,))]
    assert front.notice_arrived(moved("a", "b")) == [tell("b", "b"), Deliver("r", (4,))]
    stream = front.streams["r"]
    assert (stream.owner, stream.live, stream.delivered_tokens) == ("b", "b", 4)


def test_stream_passes_at_once_to_a_target_that_came_with_what_the_client_has(front: Ownership) -> None:
    assert front.notice_arrived(adopted("b", 2)) == [tell("b", "b")]
    assert front.streams["r"].live == "b"
    assert front.notice_arrived(moved("a", "b")) == []
    assert (front.streams["r"].owner, front.streams["r"].live) == ("b", "b")


def test_source_that_asks_when_the_stream_has_passed_already(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 2))
    assert front.doubted(doubt("a", "b")) == [tell("a", "b")]
    assert front.instance_gone("a") == []
    assert token(front, "b", 3) == [Deliver("r", (3,))]


def test_stream_does_not_pass_at_once_to_whom_another_than_its_owner_gave_it(front: Ownership) -> None:
    """a → b → c, and b made no token."""
    assert front.notice_arrived(adopted("c", 2, epoch=2, source="b")) == []
    assert front.streams["r"].live == "a"
    assert front.notice_arrived(adopted("b", 2, epoch=1)) == [tell("b", "b", 1)]
    assert front.notice_arrived(moved("b", "c", epoch=2)) == [tell("c", "c", 2)]
    assert front.streams["r"].live == "c"


def test_request_that_is_driven_out_is_freed_and_replayed(front: Ownership) -> None:
    orders = front.driven_out("r", "a drains")
    assert orders == [Abort("a", "r"), ReplayOf("r", 2, "a drains", asked_for=True)]
    assert "r" not in front.streams
    assert token(front, "a", 3) == []
    assert front.dropped == 1


def test_request_that_is_driven_out_on_its_way_is_freed_at_both_ends(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    orders = front.driven_out("r", "a drains")
    assert orders == [Abort("a", "r"), Abort("b", "r"), ReplayOf("r", 2, "a drains", asked_for=True)]


def test_target_is_live_only_when_its_tenure_begins(front: Ownership) -> None:
    front.notice_arrived(moved("a", "b"))
    assert front.streams["r"].live is None
    assert front.notice_arrived(adopted("b", 2)) == []
    assert front.streams["r"].live == "b"


def test_tokens_of_an_older_tenure_are_not_taken_for_those_of_the_owner(front: Ownership) -> None:
    """b was fenced, then the request moved to it again; its stream still carries tokens of the first time."""
    front.notice_arrived(adopted("b", 3, epoch=1))
    front.notice_arrived(stayed("a", "b", epoch=1))
    front.notice_arrived(moved("a", "b", epoch=2))
    assert token(front, "b", 99) == []
    assert front.dropped == 1
    front.notice_arrived(fenced("b", epoch=1))
    front.notice_arrived(adopted("b", 2, epoch=2))
    assert token(front, "b", 3) == [Deliver("r", (3,))]


def test_there_and_back_and_read_in_the_wrong_order(front: Ownership) -> None:
    """a → b → a, where b's stream is read last."""
    front.notice_arrived(moved("a", "b", epoch=1))
    front.notice_arrived(adopted("a", 4, epoch=2, source="b"))
    assert token(front, "a", 5) == []
    front.notice_arrived(adopted("b", 2, epoch=1))
    assert token(front, "b", 3) == [Deliver("r", (3,))]
    assert token(front, "b", 4) == [Deliver("r", (4,))]
    assert front.notice_arrived(moved("b", "a", epoch=2)) == [tell("a", "a", 2), Deliver("r", (5,))]
    assert front.streams["r"].live == "a"


def test_a_chain_of_held_moves_is_handed_out_in_order(front: Ownership) -> None:
    front.notice_arrived(adopted("c", 4, epoch=2, source="b"))
    token(front, "c", 5)
    front.notice_arrived(adopted("b", 3, epoch=1))
    token(front, "b", 4)
    assert front.notice_arrived(moved("b", "c", epoch=2)) == []
    token(front, "a", 3)
    orders = front.notice_arrived(moved("a", "b", epoch=1))
    assert orders == [tell("b", "b", 1), Deliver("r", (4,)), tell("c", "c", 2), Deliver("r", (5,))]
    assert front.streams["r"].owner == "c"


def test_attempt_failed_without_a_copy_at_the_target(front: Ownership) -> None:
    assert front.notice_arrived(stayed("a", "b")) == []
    assert front.streams["r"].live == "a"


def test_copy_that_the_source_did_not_hear_of_is_fenced(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    token(front, "b", 3)
    assert front.notice_arrived(stayed("a", "b")) == [tell("b", "a")]
    assert token(front, "b", 4) == []
    assert front.dropped == 2


def test_copy_that_shows_up_after_the_attempt_failed_is_fenced(front: Ownership) -> None:
    front.notice_arrived(stayed("a", "b"))
    assert front.notice_arrived(adopted("b", 2)) == [tell("b", "a")]
    assert token(front, "b", 3) == []


def test_source_doubts_and_the_target_was_not_heard(front: Ownership) -> None:
    assert front.doubted(doubt("a", "b")) == [tell("a", "a"), tell("b", "a")]
    assert front.notice_arrived(adopted("b", 2)) == [tell("b", "a")]
    assert token(front, "a", 3) == [Deliver("r", (3,))]


def test_source_doubts_and_the_target_has_it(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    assert front.doubted(doubt("a", "b")) == [tell("a", "b"), tell("b", "b")]
    assert token(front, "a", 3) == [Deliver("r", (3,))]  # it was on its way when the source asked
    assert front.notice_arrived(moved("a", "b")) == [tell("b", "b")]
    assert front.streams["r"].live == "b"


def test_verdict_never_changes(front: Ownership) -> None:
    front.doubted(doubt("a", "b"))
    front.notice_arrived(adopted("b", 2))
    assert front.doubted(doubt("a", "b")) == [tell("a", "a")]
    assert front.doubted(doubt("b", "b")) == [tell("b", "a")]


def test_verdict_for_the_target_never_changes(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    front.doubted(doubt("a", "b"))
    assert front.doubted(doubt("a", "b")) == [tell("a", "b")]
    assert front.doubted(doubt("b", "b")) == [tell("b", "b")]
    front.instance_gone("b")
    assert front.doubted(doubt("a", "b")) == [tell("a", "b")]


def test_target_asks_before_the_source_was_read(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    assert front.doubted(doubt("b", "b")) == []
    token(front, "a", 3)
    front.notice_arrived(moved("a", "b"))
    assert front.doubted(doubt("b", "b")) == [tell("b", "b")]


def test_doubt_overtakes_the_notices_that_made_its_sender_owner(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3, epoch=1))
    assert front.doubted(doubt("b", "c", epoch=2)) == []
    token(front, "a", 3)
    front.notice_arrived(moved("a", "b", epoch=1))
    assert front.doubted(doubt("b", "c", epoch=2)) == [tell("b", "b", 2), tell("c", "b", 2)]


def test_target_asks_that_still_counts_as_owner_of_an_older_tenure(front: Ownership) -> None:
    """a → b → a: the verdict for b let the request move on before a's `Moved` was read."""
    front.notice_arrived(adopted("b", 3, epoch=1))
    front.doubted(doubt("a", "b", epoch=1))
    assert front.doubted(doubt("a", "a", epoch=2)) == []
    assert front.doubted(doubt("a", "c", epoch=3)) == []
    token(front, "a", 3)
    front.notice_arrived(moved("a", "b", epoch=1))
    front.notice_arrived(adopted("a", 4, epoch=2, source="b"))
    token(front, "b", 4)
    assert front.notice_arrived(moved("b", "a", epoch=2)) == [tell("a", "a", 2)]
    assert front.streams["r"].live == "a"


def test_doubt_about_a_request_that_is_over(front: Ownership) -> None:
    front.finished("r")
    assert front.doubted(doubt("a", "b")) == [tell("a", NOBODY)]


def test_owner_lost_and_nobody_else_has_it(front: Ownership) -> None:
    assert front.instance_gone("a") == [ReplayOf("r", 2, "a was lost")]
    assert front.streams == {}


def test_owner_lost_and_the_target_has_every_token(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    token(front, "b", 4)
    token(front, "a", 3)
    assert front.instance_gone("a") == [tell("b", "b"), Deliver("r", (4,))]
    assert front.streams["r"].live == "b"


def test_owner_lost_with_its_last_token(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    abort, replay = front.instance_gone("a")
    assert abort == Abort("b", "r")
    assert replay == ReplayOf("r", 2, "a was lost with tokens that b has and the client has not")


def test_owner_lost_after_it_took_the_request_back(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    front.notice_arrived(stayed("a", "b"))
    assert front.instance_gone("a") == [ReplayOf("r", 2, "a was lost")]


def test_both_ends_lost(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    assert front.instance_gone("b") == []
    assert front.instance_gone("a") == [ReplayOf("r", 2, "a was lost")]


def test_target_lost_before_the_move_was_read(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    token(front, "a", 3)
    front.instance_gone("b")
    assert front.notice_arrived(moved("a", "b")) == [
        Abort("a", "r"),
        ReplayOf("r", 3, "b, where it had moved, was lost"),
    ]


def test_target_lost_before_the_source_doubts(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    front.instance_gone("b")
    assert front.doubted(doubt("a", "b")) == [tell("a", "a"), tell("b", "a")]


def test_bystander_lost(front: Ownership) -> None:
    assert front.instance_gone("c") == []
    assert token(front, "a", 3) == [Deliver("r", (3,))]


def test_lost_instance_that_only_stalled_is_not_heard(front: Ownership) -> None:
    front.instance_gone("b")
    assert front.notice_arrived(adopted("b", 2)) == []
    assert token(front, "b", 3) == []
    assert front.doubted(doubt("b", "b")) == [tell("b", NOBODY)]


def test_streams_of_a_lost_instance_are_taken_in_the_order_of_their_opening() -> None:
    front = Ownership()
    for request in ("z", "b", "k"):
        front.opened(request, "a")
    assert [order.stream.request for order in front.instance_gone("a")] == ["z", "b", "k"]


def test_target_with_another_number_of_tokens_cannot_go_on(front: Ownership) -> None:
    front.notice_arrived(moved("a", "b"))
    orders = front.notice_arrived(adopted("b", 5))
    assert orders == [Abort("b", "r"), ReplayOf("r", 2, "b has 5 tokens of it, the client 2")]


def test_client_goes_away(front: Ownership) -> None:
    assert front.aborted("r") == [Abort("a", "r")]
    assert token(front, "a", 3) == []


def test_client_goes_away_during_a_move(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    assert front.aborted("r") == [Abort("a", "r"), Abort("b", "r")]


def test_client_goes_away_after_a_verdict_for_a_target(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    front.doubted(doubt("a", "b"))
    assert front.aborted("r") == [Abort("a", "r"), Abort("b", "r")]


def test_abort_that_crosses_a_hand_over_is_forwarded(front: Ownership) -> None:
    front.aborted("r")
    assert front.notice_arrived(moved("a", "b")) == [Abort("b", "r")]
    assert front.notice_arrived(adopted("b", 2)) == [Abort("b", "r")]
    assert front.notice_arrived(stayed("a", "b")) == []


def test_request_ends_at_its_owner(front: Ownership) -> None:
    assert front.finished("r") == []


def test_target_frees_its_copy_by_itself(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    front.notice_arrived(fenced("b"))
    assert front.doubted(doubt("a", "b")) == [tell("a", "a"), tell("b", "a")]


def test_owner_that_freed_its_request_is_replaced(front: Ownership) -> None:
    assert front.notice_arrived(fenced("a", epoch=0)) == [Abort("a", "r"), ReplayOf("r", 2, "its owner a freed it")]


def test_engine_that_goes_on_with_an_unknown_request_is_told_to_abort_it(front: Ownership) -> None:
    assert front.outputs_arrived("of a dead front end", "a", (1,), 1) == [Abort("a", "of a dead front end")]
    assert front.outputs_arrived("of a dead front end", "a", (2,), 1) == []


def test_abort_that_did_not_find_its_request_is_sent_again(front: Ownership) -> None:
    """One that arrived while the grammar of a resumed request was still compiled, say."""
    front.aborted("r")
    late = [token(front, "a", value) for value in range(OUTPUTS_PER_ABORT + 1)]
    assert late[:-1] == [[]] * OUTPUTS_PER_ABORT
    assert late[-1] == [Abort("a", "r")]


def test_aborts_are_remembered_for_a_while(front: Ownership) -> None:
    for number in range(2 * ABORTS_REMEMBERED):
        front.outputs_arrived(f"s{number}", "a", (1,), 1)
    assert front.outputs_arrived("s0", "a", (2,), 1) == [Abort("a", "s0")]
    assert front.outputs_arrived(f"s{2 * ABORTS_REMEMBERED - 1}", "a", (2,), 1) == []


def test_lost_instance_is_not_told_to_abort(front: Ownership) -> None:
    front.instance_gone("b")
    assert front.outputs_arrived("s", "b", (1,), 1) == []


def test_request_that_an_ending_engine_turns_away_goes_on_elsewhere(front: Ownership) -> None:
    assert front.turned_away("r", "a") == [Abort("a", "r"), ReplayOf("r", 2, "a was stopped", asked_for=True)]
    assert front.turned_away("r", "a") == []


def test_copy_that_an_ending_engine_gives_up_does_not_matter(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    assert front.turned_away("r", "b") == []
    assert token(front, "a", 3) == [Deliver("r", (3,))]


def test_target_that_ended_after_all_that_it_had_to_say_still_counts(front: Ownership) -> None:
    """b was drained: it got the request, moved it on and ended, all before a's `Moved` was read."""
    front.notice_arrived(adopted("b", 3, epoch=1))
    token(front, "b", 4)
    front.notice_arrived(moved("b", "c", epoch=2))
    front.notice_arrived(adopted("c", 4, epoch=2, source="b"))
    assert front.instance_gone("b", complete=True) == []
    token(front, "a", 3)
    orders = front.notice_arrived(moved("a", "b", epoch=1))
    assert orders == [tell("b", "b", 1), Deliver("r", (4,)), tell("c", "c", 2)]
    assert front.streams["r"].live == "c"


def test_target_that_ended_after_the_last_token_is_not_replaced(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    front.notice_arrived(adopted("c", 4, epoch=2, source="b"))
    front.outputs_arrived("r", "b", (4,), 1, last=True)
    front.instance_gone("b", complete=True)
    token(front, "a", 3)
    assert front.notice_arrived(moved("a", "b")) == [tell("b", "b"), Deliver("r", (4,)), Abort("c", "r")]
    assert front.streams == {}
    assert front.finished("r") == []


def test_target_that_ended_in_the_middle_is_replaced_after_its_last_token(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    token(front, "b", 4)
    front.instance_gone("b", complete=True)
    token(front, "a", 3)
    orders = front.notice_arrived(moved("a", "b"))
    assert orders == [tell("b", "b"), Deliver("r", (4,)), ReplayOf("r", 4, "b, where it had moved, was lost")]


def test_second_news_of_an_end_changes_nothing(front: Ownership) -> None:
    front.notice_arrived(adopted("b", 3))
    front.instance_gone("b", complete=True)
    assert front.instance_gone("b") == []
    assert front.notice_arrived(moved("a", "b"))[0] == tell("b", "b")
