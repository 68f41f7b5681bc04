"""What vLLM has once per process exists once per instance: draws, ports, folders. The flags come from a file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from frame.checked import Server
from frame.server import wait_for
from frame.stream import COMPLETIONS, open_session

pytestmark = pytest.mark.timeout(240)

EVENTS_S = 10.0
TOKENS = 24
MOST = 12


def free_ports(count: int) -> int:
    """The first of that many in a row."""
    for first in range(20000 + os.getpid() % 8000, 60000, count):
        with socket.socket() as probe:
            try:
                for port in range(first, first + count):
                    with socket.socket() as probe:
                        probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


EVENTS = free_ports(100)
ENGINE_PORTS = EVENTS + 4
_folder = tempfile.TemporaryDirectory(prefix="apart-")  # goes when this process ends
FOLDER = Path(_folder.name)
FILE = FOLDER / "flags.yaml"
FILE.write_text(
    json.dumps(
        {
            "migration": False,
            "api-server-count": 2,
            "max-num-queued-reqs": MOST,
            "served-model-name": ["tiny", "by-file"],
            "max-model-len": 4096,
            "scheduling-policy": "fcfs",
            "kv-events-config": {
                "enable_kv_cache_events": True,
                "publisher": "zmq",
                "endpoint": f"tcp://127.0.0.1:{EVENTS}",
            },
            "profiler-config": {"profiler": "torch", "torch_profiler_dir": str(FOLDER / "profiles")},
        }
    )
)
FLAGS = ("--config", str(FILE))
ENVIRONMENT = {"VLLM_PORT": str(ENGINE_PORTS)}


async def complete(server: Server, count: int, slot: int | None = None, **more: Any) -> list[str]:
    """The answers to equal requests without a seed, all sent at once."""
    headers = {} if slot is None else {"X-data-parallel-rank": str(slot)}
    body = {"prompt": "once upon a time " * 8, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 1} | more

    async with open_session(server.url) as session:

        async def one() -> str:
            async with session.post(COMPLETIONS, json=body, headers=headers) as response:
                answer = await response.json()
                assert response.status == 200, answer
                text: str = answer["choices"][0]["text"]
                return text

        return await asyncio.gather(*(one() for _ in range(count)))


def test_the_file_says_what_is_served(server: Server) -> None:
    models = server.get("/v1/models").json()["data"]
    assert [(model["id"], model["max_model_len"]) for model in models] == [("tiny", 4096), ("by-file", 4096)]


def test_equal_requests_without_a_seed_get_different_answers_on_all_instances_and_on_a_successor(
    server: Server,
) -> None:
    answers = asyncio.run(complete(server, 8))
    first = server.instance("i1")
    os.kill(first["pid"], signal.SIGKILL)
    wait_for(lambda: [row["id"] for row in server.instances()] == ["i0", "i2"], "a successor")
    answers += asyncio.run(complete(server, 4, slot=1))
    assert len(set(answers)) == 12


def test_the_limit_of_requests_holds_over_both_front_ends(server: Server) -> None:
    async def statuses() -> list[int]:
        async with open_session(server.url) as session:

            async def one() -> int:
                body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True}
                async with session.post(COMPLETIONS, json=body) as response:
                    await response.read()
                    return response.status

            return await asyncio.gather(*(one() for _ in range(2 * MOST)))

    answers = asyncio.run(statuses())
    assert set(answers) == {200, 503}
    assert answers.count(200) >= MOST


def test_a_seed_of_the_request_says_what_is_drawn_wherever_it_runs(server: Server) -> None:
    answers = [asyncio.run(complete(server, 1, slot, seed=7)) for slot in (0, 1)]
    assert answers[0] == answers[1]


def test_each_instance_publishes_its_cache_events_on_a_port_of_its_own(server: Server) -> None:
    """vLLM connects to an address without a star; with one it listens, at the same port."""
    context = zmq.Context()
    try:
        for slot in (0, 1):
            with context.socket(zmq.SUB) as events:
                events.bind(f"tcp://127.0.0.1:{EVENTS + slot}")
                events.subscribe(b"")
                assert rank_in_events(server, events, slot) == slot
    finally:
        context.term()


def rank_in_events(server: Server, events: zmq.Socket[bytes], slot: int) -> int:
    """Of a batch of events that a new prompt causes; a subscription takes a moment, so several are sent."""
    for attempt in range(20):
        asyncio.run(complete(server, 1, slot, prompt=f"{slot} {attempt} " * 40))
        if events.poll(int(EVENTS_S * 1000 / 20)):
            _, _, payload = events.recv_multipart()
            _, _, rank = msgspec.msgpack.decode(payload)
            return int(rank)
    raise AssertionError("no events")


def test_each_instance_writes_its_profiles_into_a_folder_of_its_own(server: Server) -> None:
    assert server.post("/start_profile").status_code == 200
    for slot in (0, 1):
        asyncio.run(complete(server, 1, slot))
    assert server.post("/stop_profile").status_code == 200
    folders = {path.name: list(path.iterdir()) for path in (FOLDER / "profiles").iterdir() if path.is_dir()}
    assert {row["id"] for row in server.instances()} <= {name for name, files in folders.items() if files}
