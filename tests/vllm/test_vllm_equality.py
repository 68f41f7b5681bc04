"""Token equality under load: requests of every kind, moved by hand while they stream."""

from __future__ import annotations

import pytest
from frame.checked import Server
from frame.equality import assert_moved, compare
from frame.kinds import KINDS
from frame.stream import open_session

pytestmark = pytest.mark.timeout(300)


async def test_moved_streams_say_what_undisturbed_ones_say(server: Server) -> None:
    async with open_session(server.url) as session:
        rows = await compare(session, 2 * len(KINDS), seed=1)
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    assert_moved(rows)
    server.wait_until_quiet()
