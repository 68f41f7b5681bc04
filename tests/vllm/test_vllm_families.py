"""Token equality of every family: moved about between two engines, beside undisturbed, beside copies that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from families.equality import judge
from families.table import FAMILIES

pytestmark = [pytest.mark.vllm, pytest.mark.nightly, pytest.mark.timeout(400)]

REQUESTS = 20
MOST_TOKENS = 120  # as families that are computed alone in their batch take as many steps


@pytest.mark.parametrize("name", FAMILIES)
def test_moved_streams_say_what_undisturbed_ones_say(name: str, tmp_path: Path) -> None:
    verdict = judge(name, tmp_path, requests=REQUESTS, seed=1, concurrency=6, most_tokens=MOST_TOKENS)
    if verdict.pinned:
        pytest.skip(f"pinned: {verdict.pinned}")
    assert verdict.problems == []
    assert verdict.differing_tokens == 0
    assert verdict.controls
    assert verdict.seen
    assert bool(verdict.accepted) == bool(FAMILIES[name].drafts)
