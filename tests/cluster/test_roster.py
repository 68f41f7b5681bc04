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
