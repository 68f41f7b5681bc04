"""Structured output that begins where the reasoning ends, while it moves and while its instance dies."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path

import pytest
from frame.admin import Admin
from frame.checked import USUAL_FLAGS, Server
from frame.stream import Streaming, open_session

pytestmark = pytest.mark.timeout(120)

PLUGIN = Path(__file__).with_name("tilde_reasoning.py")
FLAGS = (*USUAL_FLAGS, "--reasoning-parser-plugin", str(PLUGIN), "--reasoning-parser", "tilde")

LETTERS = 300
TILDE = str(ord("~") - ord("!"))
"""Its token: the tiny model's first ones are the printable characters, in order."""


BODY = {
    "prompt": "Number 0 thinks of",
    "temperature": 0,
    "max_tokens": 700,
    "logit_bias": {TILDE: 2.0},
    "structured_outputs": {"regex": f"[a-z]{{{LETTERS}}}"},
}


async def test_moves_and_dies_after_its_reasoning_has_ended(server: Server) -> None:
    async with open_session(server.url) as session:
        admin = Admin(session)
        still = await Streaming(session, BODY, name="still")
        text = still.sequences[0].text
        assert re.fullmatch(rf"[^~]{{30,}}~[a-z]{{{LETTERS}}}", text, re.DOTALL)
        reasoning = text.index("~")

        moved = Streaming(session, BODY, name="moved")
        await moved.reaches(reasoning // 2)
        for tokens in (reasoning + 10, reasoning + 60):
            await moved.reaches(tokens)
            status, answer = await admin.migrate(moved.id, "i1" if await admin.where(moved.id) == "i0" else "i0")
            assert status == 200, answer
        await moved

        replayed = Streaming(session, BODY, name="replayed")
        await replayed.reaches(reasoning + 20)
        owner = await admin.where(replayed.id)
        assert owner is not None
        server.signal_instance(owner, signal.SIGKILL)
        outputs = [await moved, await replayed]
    assert [output.error for output in outputs] == ["", ""]
    assert [output.sequences[0].tokens for output in outputs] == [still.sequences[0].tokens] * 2
    await asyncio.to_thread(server.wait_until_quiet)
