"""With vLLM's compilation on, as real models have it: the first engine compiles, all further ones load what it made."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from frame.admin import Admin
from frame.checked import Server
from frame.kinds import greedy
from frame.server import wait_for
from frame.stream import COMPLETIONS, Streaming, open_session, stream

pytestmark = [pytest.mark.timeout(300), pytest.mark.vllm, pytest.mark.nightly]

READY_WITHIN_S = 5.0


def body(seed: int, max_tokens: int) -> dict[str, Any]:
    return greedy(seed, max_tokens) | {"logprobs": 1}


async def test_further_instance_is_ready_at_once_and_says_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    flags = ("--no-migration", "--no-enforce-eager")
    server = Server(folder, *flags, instances=1, environment={"VLLM_CACHE_ROOT": str(tmp_path / "cache")})
    try:
        began_s = time.monotonic()
        assert server.post("/llumnix/v1/instances", json={"count": 1}).status_code == 202
        wait_for(lambda: len(server.instances()) == 2, "a further instance")
        assert time.monotonic() - began_s < READY_WITHIN_S
        assert "saved AOT compiled function" in (folder / "i0.log").read_text()
        assert "Directly load AOT compilation" in (folder / "i1.log").read_text()
        async with open_session(server.url) as session:
            said = [await stream(session, COMPLETIONS, body(1, 200), engine=place) for place in (0, 1)]
            moving = Streaming(session, body(2, 1500), name="moving")
            await moving.reaches(50)
            source = await Admin(session).where(moving.id)
            status, _ = await Admin(session).migrate(moving.id, "i1" if source == "i0" else "i0")
            assert status == 200
            moved = await moving
            undisturbed = await stream(session, COMPLETIONS, body(2, 1500))
        assert said[0].sequences[0].tokens == said[1].sequences[0].tokens
        assert said[0].sequences[0].logprobs == said[1].sequences[0].logprobs
        assert moved.sequences[0].tokens == undisturbed.sequences[0].tokens
    finally:
        server.stop()
