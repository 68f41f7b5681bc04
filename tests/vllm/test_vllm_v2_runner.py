"""vLLM's V2 model runner, which is the one that GPUs get, on a CPU: what moves there says the same."""

from __future__ import annotations

import interpreted
import pytest
from frame.checked import Server
from frame.equality import assert_moved, compare
from frame.stream import open_session

pytestmark = pytest.mark.timeout(240)

FLAGS, ENVIRONMENT = interpreted.FLAGS, interpreted.ENVIRONMENT

KINDS = ("greedy", "penalties seeded", "logprobs", "regex seeded")


async def test_moved_streams_say_what_undisturbed_ones_say(server: Server) -> None:
    assert "Using V2 Model Runner" in (server.folder / "i0.log").read_text()
    async with open_session(server.url) as session:
        rows = await compare(session, len(KINDS), seed=8, kinds=KINDS, most_tokens=50)
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    assert_moved(rows)
    server.wait_until_quiet()
