"""Models with states that every token overwrites, beside attention: what moves is the state, in one block per group."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from families.table import engine_flags
from frame.checked import USUAL_FLAGS, Server
from frame.equality import assert_moved, compare
from frame.stream import open_session

pytestmark = pytest.mark.timeout(240)

FAMILIES = [
    "qwen3-next-cached",
    *(pytest.param(family, marks=pytest.mark.nightly) for family in ("granite4", "falcon-h1", "lfm2", "qwen3-next")),
]


@pytest.fixture(scope="module", params=FAMILIES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("hybrid"), *engine_flags(request.param), *USUAL_FLAGS)
    yield running
    running.wait_until_quiet()
    running.stop()
    assert running.trouble() == []


async def test_moved_streams_say_what_undisturbed_ones_say(server: Server) -> None:
    async with open_session(server.url) as session:
        rows = await compare(session, 8, seed=8, kinds=("greedy", "long prompt", "cached prefix"))
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    assert_moved(rows)
