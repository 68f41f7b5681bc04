"""Which word stands beside which freeness."""

from __future__ import annotations

from typing import Any

import pytest

from llumnix.policy.load_words import load_word
from llumnix.policy.pairing import PairingTerms
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.types import InstanceId, InstanceState

ONE_LIMIT = PairingTerms(migrate_out_freeness=3.0, migrate_in_freeness=3.0)
TWO_LIMITS = PairingTerms(migrate_out_freeness=3.0, migrate_in_freeness=10.0)


def load(**facts: Any) -> InstanceSnapshot:
    usual: dict[str, Any] = {"total_blocks": 100, "free_blocks": 100}
    return InstanceSnapshot(id=InstanceId("i0"), at=0.0, seq=1, **(usual | facts))


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({}, "idle"),
        ({"running": 4, "free_blocks": 41}, "roomy"),
        ({"running": 4, "free_blocks": 40}, "steady"),  # 10 blocks each
        ({"running": 4, "free_blocks": 12}, "steady"),  # 3 each
        ({"running": 4, "free_blocks": 11}, "tight"),
        ({"running": 4, "free_blocks": 0}, "tight"),
        ({"running": 4, "free_blocks": 5, "waiting": 1, "head_of_line_blocks": 6, "queued_blocks": 6}, "over"),
        ({"state": InstanceState.DRAINING, "running": 4, "free_blocks": 40}, "leaving"),
        ({"state": InstanceState.DRAINING, "drain_keep": True}, "kept"),
    ],
)
def test_word_for_how_full_an_instance_is(facts: dict[str, Any], word: str) -> None:
    assert load_word(load(**facts), TWO_LIMITS) == word


def test_with_one_limit_nothing_is_between_but_itself() -> None:
    """Pairing takes nobody to an instance that is just there, nor away from it."""
    words = [load_word(load(running=4, free_blocks=free), ONE_LIMIT) for free in (11, 12, 13)]
    assert words == ["tight", "steady", "roomy"]
