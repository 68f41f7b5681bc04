"""States that every token overwrites, beside attention. The other hybrids are compared nightly, with all families: this
one says the same whatever is computed beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from families.table import engine_flags
from frame.checked import USUAL_FLAGS, Server
from frame.equality import assert_moved, compare
from frame.stream import open_session

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(240)]


def flags(folder: Path) -> tuple[str, ...]:
    return *engine_flags("granite4"), *USUAL_FLAGS


async def test_moved_streams_say_what_undisturbed_ones_say(server: Server) -> None:
    async with open_session(server.url) as session:
        rows = await compare(session, 6, seed=8, kinds=("greedy", "long prompt", "cached prefix"))
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    assert_moved(rows)
