"""Real engines on two machines of a Ray cluster (network namespaces): requests move between them, and outlive one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from frame.admin import Admin
from frame.checked import USUAL_FLAGS, Server
from frame.equality import assert_moved, compare
from frame.kinds import greedy
from frame.server import wait_for
from frame.stream import Streaming, open_session

from two_machines import TOKEN, TwoMachines

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

STREAMS = 8
BODIES = [greedy(number, 400, words=200) for number in range(STREAMS)]


def ray(machines: TwoMachines) -> tuple[str, ...]:
    return ("--launcher", "ray", "--ray-address", machines.address)


@pytest.fixture(scope="module")
def server(machines: TwoMachines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = (*ray(machines), "--instance-timeout-s", "3", *USUAL_FLAGS)
    server = Server(tmp_path_factory.mktemp("server"), *flags, instances=2, environment=TOKEN)
    yield server
    server.stop()


async def test_requests_move_between_machines_and_outlive_one(server: Server, machines: TwoMachines) -> None:
    """The same tokens as undisturbed, in spite of moves both ways and of the loss of a whole machine."""
    by_node = {row["node"]: row for row in server.instances()}
    assert sorted(by_node) == ["here", "there"]
    instances = {row["id"] for row in by_node.values()}
    async with open_session(server.url) as session:
        calm = [Streaming(session, body, name=f"calm-{number}") for number, body in enumerate(BODIES)]
        undisturbed = [(await each).sequences[0].tokens for each in calm]
        admin = Admin(session)
        streams = [Streaming(session, body, name=f"moved-{number}") for number, body in enumerate(BODIES)]
        for each in streams:
            await each.reaches(20)
        moves = []
        for row in await admin.requests():
            (target,) = instances - {row.instance}
            moves.append(await admin.migrate(row.id, target))
        assert [answer["bytes"] > 0 for status, answer in moves if status == 200] == [True] * STREAMS, moves
        assert {row.instance for row in await admin.requests()} == instances
        machines.other.end_all()
        outputs = [await each for each in streams]
    assert [output.error for output in outputs] == [""] * STREAMS
    assert [output.sequences[0].tokens for output in outputs] == undisturbed
    lost = by_node["there"]["id"]
    wait_for(lambda: server.instance(lost)["state"] == "lost", "the loss to be known")
    server.wait_until_quiet()
    assert "llumnix_refused_connections_total 0.0" in server.metrics()


@pytest.mark.nightly
async def test_requests_of_engines_with_several_workers_move_between_machines(
    machines: TwoMachines, tmp_path: Path
) -> None:
    """From worker to worker over TCP."""
    workers = ("--tensor-parallel-size", "2", "--distributed-executor-backend", "mp", "--instance-cpus", "1")
    server = Server(tmp_path, *ray(machines), *workers, "--max-model-len", "2048", environment=TOKEN, instances=2)
    try:
        assert {row["node"] for row in server.instances()} == {"here", "there"}
        async with open_session(server.url) as session:
            rows = await compare(session, 4, seed=5, concurrency=2, kinds=["greedy", "seeded top_p"])
        assert [problem for row in rows for problem in row.problems] == []
        assert sum(row.differing_tokens for row in rows) == 0
        assert_moved(rows)
    finally:
        server.stop()
