"""Nobody asks for a move: the scheduler sees the imbalance and moves requests by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from frame.checked import Server
from frame.kinds import greedy
from frame.server import wait_for
from frame.stream import COMPLETIONS, open_session, stream

pytestmark = pytest.mark.timeout(240)

FLAGS = (
    *("--num-gpu-blocks-override", "201", "--max-model-len", "2048"),
    *("--request-cooldown-s", "0.2", "--migrate-out-freeness", "20", "--migrate-in-freeness", "40"),
)


async def test_load_on_one_side_is_balanced_and_listed_with_its_reason(server: Server) -> None:
    """Everything is sent to one instance, against the dispatcher's will."""
    bodies = [greedy(n, 500, words=60) for n in range(14)]
    async with open_session(server.url) as session:
        work = [
            asyncio.create_task(stream(session, COMPLETIONS, body, name=f"pushed-{n}", engine=0))
            for n, body in enumerate(bodies)
        ]
        outputs = await asyncio.gather(*work)
        calm = await asyncio.gather(*(stream(session, COMPLETIONS, body) for body in bodies[:6]))
    assert all(output.complete and output.tokens == 500 for output in outputs)
    server.wait_until_quiet()

    def all_moves_told() -> bool:
        """Those of streams that had ended before the old owner's word of them came, too."""
        return server.counted("llumnix_migrations_total", outcome="moved") == len(moved_rows(server))

    wait_for(all_moves_told, "as many moves that are counted as there are rows")
    moved = moved_rows(server)
    assert moved, "an imbalanced load led to no move"
    assert {(row["source"], row["target"]) for row in moved} >= {("i0", "i1")}
    assert all(row["reason"] and row["cause"] != "by_hand" for row in moved), moved
    assert [o.sequences[0].tokens for o in outputs[:6]] == [o.sequences[0].tokens for o in calm]
    assert server.counted("llumnix_migrations_total", outcome="moved") == len(moved)


def moved_rows(server: Server) -> list[dict[str, Any]]:
    return [row for row in server.migrations() if row["outcome"] == "moved"]
