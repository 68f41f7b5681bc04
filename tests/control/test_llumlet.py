"""What a llumlet does around its migrations: whom it takes, whom it gives, what it remembers, when it wakes."""

# Ids are plain strings here, and of what class a command is, the test itself shows.
# mypy: disable-error-code="arg-type, type-arg, union-attr"
from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llumnix.config import MigrationConfig
from llumnix.control import commands as do
from llumnix.control import events as ev
from llumnix.control import messages as say
from llumnix.control.attempts import REMEMBER_S, REMEMBERED, Attempts, Ended
from llumnix.control.llumlet import Llumlet
from llumnix.control.orders import MoveCause, MoveOrder, MoveOutcome, StayCause
from llumnix.control.replay import LlumletBegin, replay_recording
from llumnix.control.transcript import HALF_CANDIDATES, Entry
from llumnix.errors import IllegalEvent
from llumnix.policy.snapshot import RequestSnapshot
from llumnix.policy.victim import CHEAPEST, VictimChoice, VictimQuery, Wanted, choose_victims
from llumnix.types import NORMAL, RequestState

CONFIG = MigrationConfig(max_incoming=2, max_outgoing=2)


def cheapest(requests: Any, query: VictimQuery) -> VictimChoice:
    return choose_victims(CHEAPEST, requests, query)


def llumlet(instance: str = "b") -> Llumlet:
    return Llumlet(instance, CONFIG, cheapest, 1.0, validate=True)


def request(name: str, blocks: int = 4, **facts: Any) -> RequestSnapshot:
    known = {
        "state": RequestState.RUNNING,
        "priority": NORMAL,
        "arrival_s": 0.0,
        "output_tokens": 3,
        "held_blocks": blocks,
        "needed_blocks": blocks,
        "length_blocks": blocks,
    }
    return RequestSnapshot(id=name, **{**known, **facts})


def move(*candidates: RequestSnapshot, name: str | None = None, count: int = 1, at: float = 0.0) -> ev.MoveOrdered:
    return ev.MoveOrdered(at, order(name, count), candidates)


def order(name: str | None = None, count: int = 1, target: str = "c") -> MoveOrder:
    wanted = Wanted(count=count, room_blocks=100)
    return MoveOrder(
        move_id="m7", target=target, cause=MoveCause.BALANCE, reason="balance", request=name, wanted=wanted
    )


def cannot(order: MoveOrder, why: str, not_started: int | None = None) -> do.AnswerMove:
    stayed, request = StayCause.NOT_STARTED, order.request
    outcome = MoveOutcome(order=order, source="b", request=request, not_started=not_started, why_not=why, stayed=stayed)
    return do.AnswerMove(outcome)


def prepare(name: str = "r", epoch: int = 5, sender: str = "a", at: float = 0.0) -> ev.Received:
    return ev.Received(at, say.Prepare(request=name, epoch=epoch, sender=sender, blocks=4))


def header(epoch: int = 5, sender: str = "a", name: str = "r") -> dict:
    return {"request": name, "epoch": epoch, "sender": sender}


def commit(epoch: int = 5) -> say.Commit:
    return say.Commit(**header(epoch), stage=1, first_block=0, blocks=0)


def kinds(commands: list[do.AnyCommand]) -> list[str]:
    return [type(getattr(each, "message", each)).__name__ for each in commands if not isinstance(each, do.WakeAt)]


def adopt(taker: Llumlet, epoch: int = 5) -> None:
    taker.handle(prepare(epoch=epoch))
    taker.handle(ev.Reserved(0.0, "r", epoch, 0))
    taker.handle(ev.Received(0.0, commit(epoch)))
    assert kinds(taker.handle(ev.Installed(0.0, "r", epoch, 3))) == ["Adopted", "Committed"]


# giving


def test_the_cheapest_request_is_picked() -> None:
    commands = llumlet().handle(move(request("long", 40), request("short", 4)))
    assert commands[:2] == [
        do.WatchProgress("short"),
        do.Send("c", say.Prepare(**header(1, "b", "short"), blocks=4)),
    ]


def test_room_is_asked_for_by_its_length_and_the_target_adds_its_state() -> None:
    commands = llumlet().handle(move(request("r", 7, length_blocks=4)))
    assert commands[1].message.blocks == 4


@pytest.mark.parametrize(
    ("others", "wanted", "why"),
    [
        ([], 3, "only 1 of 3: no other requests"),
        (
            [request("pinned", why_pinned="pooling request"), request("large", 100)],
            2,
            "only 1 of 2: 1 pinned, 1 do not fit",
        ),
        ([request("two"), request("three")], 3, "only 2 of 3: 2 migrations out now"),
    ],
)
def test_several_are_picked_and_what_is_missing_is_answered(others: list, wanted: int, why: str) -> None:
    commands = llumlet().handle(move(request("one"), *others, count=wanted))
    picked = kinds(commands).count("Prepare")
    assert kinds(commands) == ["WatchProgress", "Prepare"] * picked + ["AnswerMove"]
    assert commands[-2] == cannot(order(count=wanted), why, wanted - picked)


def test_nothing_to_give() -> None:
    (answer,) = llumlet().handle(move(request("pinned", why_pinned="pooling request"), count=2))
    assert answer == cannot(order(count=2), "nothing to give: 1 pinned", 2)


def test_request_on_the_move_is_not_picked_again() -> None:
    giver = llumlet()
    giver.handle(move(request("one")))
    assert kinds(giver.handle(move(request("one")))) == ["AnswerMove"]


def test_queued_request_asks_for_no_blocks() -> None:
    commands = llumlet().handle(move(request("q", state=RequestState.WAITING)))
    assert commands[1].message.blocks == 0


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (move(name="r"), "no such request here"),
        (move(request("r", why_pinned="pooling request"), name="r"), "it is pinned to its instance: pooling request"),
        (
            move(request("r", state=RequestState.MIGRATING), name="r"),
            "it is on the move already, or its last move is not confirmed yet",
        ),
        (ev.MoveOrdered(0.0, order("r", target="b"), (request("r"),)), "it is there already"),
    ],
)
def test_named_request_that_cannot_move(asked: ev.MoveOrdered, why: str) -> None:
    assert llumlet().handle(asked) == [cannot(asked.order, why)]


def test_no_more_than_max_outgoing() -> None:
    giver = llumlet()
    giver.handle(move(request("one"), request("two"), count=2))
    assert giver.outgoing == 2
    (picked,) = giver.handle(move(request("three")))
    (named,) = giver.handle(move(request("three"), name="three"))
    assert picked.outcome.why_not == named.outcome.why_not == "2 migrations out already"


def test_epochs_grow_beyond_every_epoch_seen() -> None:
    giver = llumlet()
    giver.handle(ev.Received(0.0, say.Cancel(**header(41), reason="x")))
    commands = giver.handle(move(request("r"), name="r"))
    assert commands[1].message.epoch == 42


# taking


def test_draining_instance_refuses_and_accepts_again() -> None:
    taker = llumlet()
    taker.handle(ev.Draining(0.0))
    (refused,) = taker.handle(prepare(epoch=5))
    assert refused == do.Send("a", say.Refused(**header(5, "b"), reason="draining"))
    taker.handle(ev.Accepting(0.0))
    assert kinds(taker.handle(prepare(epoch=6))) == ["Prepare"]


def test_no_more_than_max_incoming() -> None:
    taker = llumlet()
    taker.handle(prepare("one"))
    taker.handle(prepare("two"))
    assert taker.incoming == 2
    (refused,) = taker.handle(prepare("three"))
    assert refused.message.reason == "2 migrations in already"


def test_adopted_request_does_not_count_as_incoming() -> None:
    taker = llumlet()
    adopt(taker)
    assert taker.incoming == 0
    assert taker.is_moving("r")


def test_refusal_is_a_promise() -> None:
    """The Prepare comes again when there would be room: the source may have read the refusal already."""
    taker = llumlet()
    taker.handle(ev.Draining(0.0))
    taker.handle(prepare())
    taker.handle(ev.Accepting(0.0))
    assert kinds(taker.handle(prepare())) == ["Refused"]


def test_cancel_overtakes_its_prepare() -> None:
    taker = llumlet()
    assert taker.handle(ev.Received(0.0, say.Cancel(**header(), reason="finished"))) == []
    assert kinds(taker.handle(prepare())) == ["Refused"]
    assert taker.incoming == 0


def test_commit_without_a_reservation_is_refused_for_good() -> None:
    taker = llumlet()
    assert kinds(taker.handle(ev.Received(0.0, commit()))) == ["Refused"]
    assert kinds(taker.handle(prepare())) == ["Refused"]


def test_commit_that_comes_again_long_after_the_adoption() -> None:
    taker = llumlet()
    adopt(taker)
    taker.handle(ev.Received(0.0, say.Verdict(**header(5, say.FRONT_END), owner="b")))
    assert not taker.is_moving("r")
    assert taker.handle(ev.Received(0.0, commit())) == []
    assert taker.handle(prepare()) == []
    assert taker.late == 2


def test_newer_attempt_replaces_a_forgotten_reservation() -> None:
    taker = llumlet()
    taker.handle(prepare(epoch=5))
    taker.handle(ev.Reserved(0.0, "r", 5, 0))
    commands = taker.handle(prepare(epoch=6, sender="d"))
    assert commands[:2] == [do.Drop("r", 5), do.Reserve("r", 6, 4, prepare(epoch=6, sender="d").message)]


def test_copy_of_an_older_attempt_blocks_a_newer_one() -> None:
    taker = llumlet()
    adopt(taker, epoch=5)
    (refused,) = taker.handle(prepare(epoch=6))
    assert refused.message.reason == "an older copy of it is still here"


def test_request_that_moves_out_is_not_taken_in() -> None:
    both = llumlet()
    both.handle(move(request("r"), name="r"))
    (refused,) = both.handle(prepare(epoch=9))
    assert refused.message.reason == "an older copy of it is still here"


def test_attempt_that_nobody_knows_any_more_is_cancelled() -> None:
    giver = llumlet()
    prepared = say.Prepared(**header(3, "c"), skip_blocks=0)
    (cancel,) = giver.handle(ev.Received(0.0, prepared))
    assert cancel == do.Send("c", say.Cancel(**header(3, "b"), reason="this attempt is over"))


@pytest.mark.parametrize(
    "message",
    [
        say.Copied(**header(3, "c"), stage=1, bytes_read=1),
        say.Committed(**header(3, "c"), bytes_read=1),
        say.Refused(**header(3, "c"), reason="no room"),
        say.Verdict(**header(3, say.FRONT_END), owner="b"),
    ],
)
def test_answers_of_an_older_attempt_change_nothing(message: say.Message) -> None:
    giver = llumlet()
    giver.handle(ev.Received(0.0, say.Cancel(**header(3), reason="x")))
    giver.handle(move(request("r"), name="r"))
    before, late = msgspec.json.encode(giver.attempts.sources), giver.late
    assert giver.handle(ev.Received(1.0, message)) == []
    assert msgspec.json.encode(giver.attempts.sources) == before
    assert giver.late == late + 1


def test_what_is_over_is_forgotten_in_the_end() -> None:
    taker = llumlet()
    for epoch in range(1, 50):
        name = f"r{epoch}"
        taker.handle(ev.Received(epoch * 30.0, say.Cancel(**header(epoch, "a", name), reason="x")))
    assert list(taker.attempts.ended) == [f"r{epoch}" for epoch in range(49 - int(REMEMBER_S // 30), 50)]


# peers, time, and what the driver must not do


def test_lost_peer_ends_what_was_with_it_and_nothing_else() -> None:
    both = llumlet()
    both.handle(move(request("out"), name="out"))
    both.handle(prepare("in", sender="c"))
    both.handle(prepare("other", sender="d"))
    assert kinds(both.handle(ev.PeerLost(1.0, "c"))) == ["Unwatch", "Stayed", "AnswerMove", "Drop"]
    assert (both.outgoing, both.incoming) == (0, 1)


def test_alarm_is_set_for_the_earliest_deadline_and_set_again() -> None:
    taker = llumlet()
    assert do.WakeAt(CONFIG.prepare_timeout_s) in taker.handle(prepare("one", at=0.0))
    assert not any(isinstance(each, do.WakeAt) for each in taker.handle(prepare("two", at=1.0)))
    assert taker.handle(ev.TimerFired(2.0)) == [do.WakeAt(5.0)]
    commands = taker.handle(ev.TimerFired(5.0))
    assert kinds(commands) == ["Drop", "Refused"]
    assert commands[-1] == do.WakeAt(6.0)
    assert kinds(taker.handle(ev.TimerFired(6.0))) == ["Drop", "Refused"]


def test_news_about_requests_that_do_not_move_is_cheap() -> None:
    idle = llumlet()
    assert idle.handle(ev.Gone(0.0, "r", "finished")) == []
    assert idle.handle(ev.Progress(0.0, "r", 1, 2, 3, True)) == []
    assert idle.handle(ev.Preempted(0.0, "r")) == []
    assert idle.handle(ev.Pulled(0.0, "r", 1, 1, 10)) == []


def test_detached_without_being_asked_is_the_drivers_mistake() -> None:
    with pytest.raises(IllegalEvent, match="does not move"):
        llumlet().handle(ev.Detached(0.0, "r", 3, 4))


def test_illegal_event_carries_the_transcript_of_its_request() -> None:
    giver = llumlet()
    giver.handle(move(request("r"), request("s"), count=2))
    with pytest.raises(IllegalEvent) as caught:
        giver.handle(ev.Detached(1.0, "r", 3, 4))
    assert "MigrationSource of r, epoch 1, is preparing and cannot take Detached" in str(caught.value)
    assert "Prepare(request='r'" in str(caught.value)


# transcripts and recordings


def a_long_life(both: Llumlet, half: int = 1000) -> Llumlet:
    both.transcript._half = half
    for epoch in range(1, 40):
        name = f"r{epoch}"
        both.handle(prepare(name, epoch=1000 + epoch, at=epoch))
        both.handle(ev.Reserved(epoch, name, 1000 + epoch, 0))
        copy = say.Copy(**header(1000 + epoch, "a", name), stage=1, first_block=0, blocks=2, block_ids=(1, 2))
        both.handle(ev.Received(epoch, copy))
        both.handle(move(request(name, 4), request(f"q{epoch}", 3), at=epoch))
        both.handle(ev.Progress(epoch, f"q{epoch}", 3, 4, 5, True))
        both.handle(ev.TimerFired(epoch + 0.5))
    return both


def test_what_it_answered_once_it_answers_again() -> None:
    begin = LlumletBegin(instance="b", policy="llumnix", config=CONFIG, cooldown_s=1.0)
    lines: list[bytes] = []
    a_long_life(begin.make(lambda *happened: lines.append(msgspec.json.encode(begin.entry(*happened)))))
    entries = [msgspec.json.decode(line, type=Entry) for line in lines]
    assert len(entries) > 150
    assert any(entry.commands for entry in entries)
    assert replay_recording(begin, entries) == []
    assert replay_recording(begin, entries[1:]) != []


def test_transcript_is_bounded_and_keeps_the_latest() -> None:
    transcript = a_long_life(llumlet(), half=20).transcript
    assert 20 <= len(transcript.entries) <= 40
    assert transcript.entries[-1].event == ev.TimerFired(39.5)


def test_transcript_of_one_request() -> None:
    transcript = a_long_life(llumlet()).transcript
    entries = transcript.of("r7")
    assert entries
    assert len(entries) < len(transcript.entries)
    assert all("r7" in str(entry) for entry in entries)


def test_transcript_keeps_no_payload() -> None:
    taker = llumlet()
    heavy = say.Prepare(**header(), blocks=1, payload=b"x" * 1000)
    commands = taker.handle(ev.Received(0.0, heavy))
    assert commands[0].message.payload == heavy.payload
    assert "xxx" not in str(taker.transcript.entries[0])


def test_transcript_of_long_orders_is_short() -> None:
    """An order shows the whole batch: two thousand of those would be gigabytes."""
    giver = llumlet()
    batch = [request(f"r{n}", blocks=200) for n in range(300)]
    for number in range(200):
        giver.handle(move(*batch, at=float(number)))
        named = sum(len(entry.event.candidates) for entry in giver.transcript.entries)  # type: ignore[misc]
        assert named < 2 * (HALF_CANDIDATES + len(batch))
    assert giver.transcript.entries[-1].event.at == 199.0


def test_attempts_that_are_over_are_remembered_up_to_a_number() -> None:
    attempts = Attempts()
    for number in range(2 * REMEMBERED):
        attempts.remember(f"r{number}", Ended(1, False, 0.001 * number))
    assert len(attempts.ended) == REMEMBERED
    assert attempts.has_ended(f"r{2 * REMEMBERED - 1}", 1)
