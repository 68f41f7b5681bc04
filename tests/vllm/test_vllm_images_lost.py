"""Many streams, half of them sampled with a seed and most with images, through two front ends: instances are killed
under them one after another, and none fails or says anything else."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Iterator

import pytest

pytest.importorskip("vllm")

from families.table import engine_environment, engine_flags
from frame.checked import Server
from frame.equality import undisturbed
from frame.kinds import make
from frame.server import wait_for
from frame.stream import Streaming, open_session
from server_garage import own_server

pytestmark = [pytest.mark.timeout(280), pytest.mark.vllm, pytest.mark.nightly]

INSTANCES = 3
KINDS = ("image", "image seeded", "two images", "seeded top_p") * 5


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with own_server(
        tmp_path_factory.mktemp("server"),
        *engine_flags("qwen2-vl"),
        *("--max-num-batched-tokens", "512", "--api-server-count", "2", "--no-migration"),
        instances=INSTANCES,
        environment=engine_environment("qwen2-vl"),
    ) as running:
        yield running


async def test_streams_outlive_two_instances(server: Server) -> None:
    kinds = [make(name, random.Random(number)) for number, name in enumerate(KINDS)]
    async with open_session(server.url, timeout_s=250) as session:
        streams = [
            Streaming(session, kind.body, path=kind.path, name=f"lost-{n}", engine=n % INSTANCES)
            for n, kind in enumerate(kinds)
        ]
        for victim, tokens in (("i0", 20), ("i1", 60)):
            for each in streams:
                await each.reaches(tokens)
            assert server.instance(victim)["running"] > 0
            server.signal_instance(victim, signal.SIGKILL)
        outputs = [await each for each in streams]
        await asyncio.to_thread(wait_for, lambda: len(server.instances()) == INSTANCES, "successors")
        still = await asyncio.gather(*(undisturbed(session, kind, f"spared-{n}") for n, kind in enumerate(kinds)))
    assert [output.failure for output in outputs] == [""] * len(kinds)
    assert [output.sequences for output in outputs] == [output.sequences for output in still]
