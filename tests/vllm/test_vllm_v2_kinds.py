"""Everything that moves, with vLLM's V2 model runner: requests of every kind, moved at random."""

from __future__ import annotations

import interpreted
import pytest
from frame.checked import Server
from frame.equality import assert_moved, compare
from frame.kinds import KINDS
from frame.stream import open_session

pytestmark = [pytest.mark.timeout(600), pytest.mark.nightly]

FLAGS = (*interpreted.FLAGS, "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
ENVIRONMENT = interpreted.ENVIRONMENT

MOST_TOKENS = 150
PATIENCE_S = 500


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kinds", [list(KINDS)[::2], list(KINDS)[1::2]], ids=["even", "odd"])
async def test_moved_streams_say_what_undisturbed_ones_say(server: Server, kinds: list[str], seed: int) -> None:
    async with open_session(server.url, timeout_s=PATIENCE_S) as session:
        rows = await compare(session, len(kinds), seed=seed, kinds=kinds, most_tokens=MOST_TOKENS)
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    assert_moved(rows)
    server.wait_until_quiet()
