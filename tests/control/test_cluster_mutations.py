"""The joined model can fail: each of these plausible mistakes, between two machines, breaks it within a few walks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cluster_walk import CONFUSED, STRANGERS, WEIGHTS, walk

from llumnix.control import dispatcher
from llumnix.control.cluster_view import ClusterView, Known
from llumnix.control.front_end_events import Arrived, ReplayAt, TellVerdict
from llumnix.control.hearing import Hearing
from llumnix.control.known_instance import KnownInstance
from llumnix.control.messages import FRONT_END, Doubt, Verdict
from llumnix.control.moves import MovesInFlight
from llumnix.control.ownership import Order, Ownership, Replay
from llumnix.control.placing import Placing
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId

Patch = pytest.MonkeyPatch


def ledger_of_a_new_front_end_begins_at_zero(patch: Patch) -> None:
    patch.setattr(dispatcher, "KnownInstance", lambda reported, _dispatched: KnownInstance(reported, 0))


def request_that_was_counted_stays_charged(patch: Patch) -> None:
    def counted(self: dispatcher.Dispatcher, snapshot: InstanceSnapshot) -> int:
        return snapshot.running + snapshot.waiting

    patch.setattr(dispatcher.Dispatcher, "_counted", counted)


def whoever_asks_is_told_that_it_is_the_owner(patch: Patch) -> None:
    def doubted(self: Ownership, doubt: Doubt) -> list[Order]:
        verdict = Verdict(request=doubt.request, epoch=doubt.epoch, sender=FRONT_END, owner=doubt.sender)
        return [TellVerdict(doubt.sender, verdict)]

    patch.setattr(Ownership, "doubted", doubted)


def scheduler_keeps_who_is_gone(patch: Patch) -> None:
    def forget(self: ClusterView, instance: InstanceId) -> Known | None:
        return self.get(instance)

    patch.setattr(ClusterView, "forget", forget)


def schedulers_name_their_orders_alike(patch: Patch) -> None:
    init = MovesInFlight.__init__
    patch.setattr(MovesInFlight, "__init__", lambda self, name="": init(self, "scheduler"))


def early_words_are_dropped(patch: Patch) -> None:
    patch.setattr(Hearing, "says", lambda self, index, word: self._known.get(index))


def parked_requests_are_forgotten(patch: Patch) -> None:
    def place(self: Placing) -> list[Any]:
        self._waiting = {}
        return []

    patch.setattr(Placing, "_place_waiting", place)


def client_that_left_is_placed(patch: Patch) -> None:
    patch.setattr(Placing, "wait_no_more", lambda self, request: None)


def instance_that_ends_gets_requests(patch: Patch) -> None:
    patch.setattr(Placing, "close", lambda self, instance: None)


def replay_begins_at_the_first_token(patch: Patch) -> None:
    begin = Placing.begin_anew

    def anew(self: Placing, lost: Replay) -> Any:
        command = begin(self, lost)
        if isinstance(command, ReplayAt):
            stream = self._ownership.streams[command.new_id]
            stream.delivered_tokens = stream.began_with = 0
        return command

    patch.setattr(Placing, "begin_anew", anew)


def replays_share_a_name(patch: Patch) -> None:
    begin = Placing.begin_anew

    def anew(self: Placing, lost: Replay) -> Any:
        lost.stream.replays = 0
        return begin(self, lost)

    patch.setattr(Placing, "begin_anew", anew)


def seeded_stream_is_replayed(patch: Patch) -> None:
    arrived = Placing.arrived

    def exact(self: Placing, asked: Arrived) -> Any:
        return arrived(self, Arrived(**{**fields(asked), "not_exact": ""}))

    patch.setattr(Placing, "arrived", exact)


def fields(asked: Arrived) -> dict[str, Any]:
    return {name: getattr(asked, name) for name in asked.__struct_fields__}


def tokens_of_a_lost_instance_count(patch: Patch) -> None:
    def gone(self: Ownership, instance: InstanceId, complete: bool = False) -> list[Order]:
        return [order for stream in list(self.streams.values()) if stream.owner == instance for order in lost(stream)]

    def lost(stream: Any) -> list[Order]:
        stream.live = None
        return [Replay(stream, f"{stream.owner} was lost")]

    patch.setattr(Ownership, "instance_gone", gone)


@pytest.mark.parametrize(
    "mistake",
    [
        ledger_of_a_new_front_end_begins_at_zero,
        request_that_was_counted_stays_charged,
        whoever_asks_is_told_that_it_is_the_owner,
        scheduler_keeps_who_is_gone,
        schedulers_name_their_orders_alike,
        early_words_are_dropped,
        parked_requests_are_forgotten,
        client_that_left_is_placed,
        instance_that_ends_gets_requests,
        replay_begins_at_the_first_token,
        replays_share_a_name,
        seeded_stream_is_replayed,
        tokens_of_a_lost_instance_count,
    ],
)
def test_the_joined_model_finds(mistake: Callable[[Patch], None], monkeypatch: Patch) -> None:
    mistake(monkeypatch)
    with pytest.raises(Exception):  # noqa: B017, PT011 (which of the model's checks trips first does not matter)
        walk_long()


def walk_long() -> None:
    for seed in range(100):
        for weights in (WEIGHTS, CONFUSED, STRANGERS):
            walk(seed, 600, weights)
