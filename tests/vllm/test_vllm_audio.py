"""Requests that listen: they move and are replayed as those do that look (test_vllm_images.py). A tiny Qwen 2 Audio."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator

import pytest
from families.table import engine_environment, engine_flags
from frame.admin import Admin
from frame.checked import Server
from frame.equality import assert_moved, compare, undisturbed
from frame.kinds import HEARD, make
from frame.stream import Streaming, open_session
from server_garage import own_server

pytestmark = [pytest.mark.timeout(240), pytest.mark.vllm, pytest.mark.nightly]

ROOM = 4  # requests that an instance runs at once


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = (*engine_flags("qwen2-audio"), "--no-migration", "--max-num-batched-tokens", "512")
    environment = engine_environment("qwen2-audio")
    with own_server(
        tmp_path_factory.mktemp("server"), *flags, "--max-num-seqs", str(ROOM), environment=environment
    ) as running:
        yield running


async def test_streams_say_the_same_wherever_they_move(server: Server) -> None:
    async with open_session(server.url) as session:
        rows = await compare(session, 6, seed=3, kinds=HEARD, concurrency=2 * ROOM, most_moves=3)
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    assert_moved(rows)


async def test_queued_one_moves_without_kv_then_with_it_and_outlives_its_instance(server: Server) -> None:
    kind = make("two audios", random.Random(9))
    async with open_session(server.url) as session:
        admin = Admin(session)
        said = await undisturbed(session, kind, "still")
        full = [Streaming(session, kind.body, name=f"full {n}", path=kind.path, engine=0) for n in range(ROOM)]
        for each in full:
            await each.reaches(1)
        one = Streaming(session, kind.body, name="queued", path=kind.path, engine=0)
        await admin.until_state(one.id, "waiting")
        status, answer = await admin.migrate(one.id, "i1")
        assert (status, answer.get("bytes")) == (200, 0)
        await one.reaches(5)
        for each in full:
            await each.cancel()
        status, answer = await admin.migrate(one.id, "i0")
        assert status == 200
        assert answer["bytes"] > 0
        await one.reaches(60)
        server.signal_instance("i0", signal.SIGKILL)
        output = await one
    assert output.failure == ""
    assert output.sequences == said.sequences
