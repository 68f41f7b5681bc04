"""Numbers of instances, in the long run."""

from __future__ import annotations

from llumnix.cluster.roster import INDICES, Roster


def test_index_of_two_bytes_is_used_again_when_all_were_used_but_never_by_two_at_once() -> None:
    roster = Roster(instances=2, front_ends=1)
    stays = roster.place_instance(0, at=0.0, kill_at_s=1.0)
    ids = {stays.id}
    for _ in range(INDICES + 10):
        other = roster.place_instance(1, at=0.0, kill_at_s=1.0)
        assert other.index.to_bytes(2, "little")
        assert other.index != stays.index
        ids.add(other.id)
        roster.gone(other)
    assert len(ids) == INDICES + 11


def test_room_is_for_whoever_fits_on_the_gpus_once_the_others_are_gone() -> None:
    assert Roster(instances=2, front_ends=1).fleet(0).room is None
    roster = Roster(instances=2, front_ends=1, most=3)
    assert roster.fleet(0).room == 1
    leaving = roster.place_instance(0, at=0.0, kill_at_s=1.0)
    leaving.end, leaving.replace = "drained", False
    roster.add_slots(1)
    assert roster.fleet(0).room == 0, "it has its GPU until it is gone"
    roster.gone(leaving)
    del roster.slots[0]
    assert roster.fleet(0).room == 1
