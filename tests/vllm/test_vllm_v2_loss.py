"""Instances are drained and killed under streams, with vLLM's V2 model runner: all go on, token by token."""

from __future__ import annotations

import asyncio
import random
import signal

import interpreted
import pytest
from frame.admin import Admin
from frame.checked import Server
from frame.kinds import make
from frame.server import wait_for
from frame.stream import Streaming, open_session

pytestmark = [pytest.mark.timeout(290), pytest.mark.nightly]

FLAGS, ENVIRONMENT = interpreted.FLAGS, interpreted.ENVIRONMENT

MOST_TOKENS = 100
PATIENCE_S = 250
KINDS = ("greedy", "seeded top_p", "seeded top_k min_p", "penalties seeded", "logprobs", "regex seeded", "json schema")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_streams_go_on_whose_instance_is_drained_or_killed(server: Server, number: signal.Signals) -> None:
    """Those that draw with a seed, too: what V2 draws follows from the seed and the position alone."""
    if len(server.instances()) < 2:
        assert server.post("/llumnix/v1/instances", json={"count": 1}).status_code == 202
    await asyncio.to_thread(wait_for, lambda: len(server.instances()) == 2, "two instances")
    kinds = [make(name, random.Random(seed)).shortened(MOST_TOKENS) for seed, name in enumerate(KINDS)]

    def streams(name: str, place: int) -> list[Streaming]:
        names = [f"{name}-{number.name}-{n}" for n in range(len(kinds))]
        return [
            Streaming(session, kind.body, path=kind.path, name=name, engine=place)
            for kind, name in zip(kinds, names, strict=True)
        ]

    async with open_session(server.url, timeout_s=PATIENCE_S) as session:
        torn = streams("torn", place=0)
        for each in torn:
            await each.reaches(10)
        owners = [await Admin(session).where(stream.id) for stream in torn]
        owner = next(owner for owner in owners if owner is not None)  # whoever began first may be through by now
        server.signal_instance(owner, number)
        outputs = [await each for each in torn]
        still = [await each for each in streams("still", place=1)]
    assert [output.failure for output in outputs] == [""] * len(kinds)
    assert [output.sequences for output in outputs] == [output.sequences for output in still]
    await asyncio.to_thread(wait_for, lambda: owner not in {row["id"] for row in server.instances()}, "its end")
    server.wait_until_quiet()
