"""Requests that look at images and videos, and prompts given as embeddings: they move, are replayed and are drained
like others.

A tiny Qwen 2 VL: how long an image is in tokens depends on its size, and positions have three parts (M-RoPE).
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from families.table import engine_environment, engine_flags
from frame.admin import Admin
from frame.checked import Server
from frame.equality import assert_moved, compare
from frame.kinds import Kind, make
from frame.server import wait_for
from frame.stream import COMPLETIONS, Streaming, open_session, stream

pytestmark = [pytest.mark.timeout(240), pytest.mark.vllm]

ROOM = 4  # requests that an instance runs at once
ENVIRONMENT = engine_environment("qwen2-vl")
MORE = ("--no-migration", "--max-num-batched-tokens", "512", "--enable-prompt-embeds", "--max-num-seqs", str(ROOM))
EMBEDDINGS = """
import base64, io, torch
saved = io.BytesIO()
torch.save(torch.randn(40, 128, generator=torch.Generator().manual_seed(1)) / 8, saved)
print(base64.b64encode(saved.getvalue()).decode())
"""


def flags(folder: Path) -> tuple[str, ...]:
    return *engine_flags("qwen2-vl"), *MORE


@cache
def embeddings() -> str:
    """Of forty tokens without a word. Made in a process of its own: PyTorch and its threads are not for a test."""
    return subprocess.run([sys.executable, "-c", EMBEDDINGS], check=True, capture_output=True, text=True).stdout.strip()


def looking(seed: int, kind: str = "two images", max_tokens: int = 160) -> Kind:
    made = make(kind, random.Random(seed))
    return Kind(kind, made.path, made.body | {"max_tokens": max_tokens})


def embedded(max_tokens: int = 160) -> Kind:
    body = {"prompt_embeds": embeddings(), "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    return Kind("embeddings", COMPLETIONS, body)


def begun(session: Any, kind: Kind, name: str, engine: int | None = None) -> Streaming:
    return Streaming(session, kind.body, name=name, path=kind.path, engine=engine)


async def undisturbed(session: Any, kind: Kind) -> list[int]:
    output = await stream(session, kind.path, kind.body)
    assert output.error == ""
    return output.sequences[0].tokens


async def two_instances(server: Server) -> None:
    await asyncio.to_thread(wait_for, lambda: len(server.instances()) == 2, "a successor")


async def test_streams_say_the_same_wherever_they_move(server: Server) -> None:
    kinds = ("image", "two images", "image seeded", "video and image")
    async with open_session(server.url) as session:
        rows = await compare(session, 8, seed=3, kinds=kinds, concurrency=2 * ROOM, most_moves=3)
    assert [problem for row in rows for problem in row.problems] == []
    assert sum(row.differing_tokens for row in rows) == 0
    assert_moved(rows)


@pytest.mark.parametrize("kind", ["two images", "video", "embeddings"])
async def test_queued_one_moves_without_kv_and_after_its_first_tokens_with_it(server: Server, kind: str) -> None:
    await two_instances(server)
    moving = embedded() if kind == "embeddings" else looking(9, kind)
    async with open_session(server.url) as session:
        admin = Admin(session)
        full = [begun(session, looking(n, "image", 400), f"{kind} full {n}", 0) for n in range(ROOM)]
        for each in full:
            await each.reaches(1)
        one = begun(session, moving, f"{kind} queued", 0)
        await admin.until_state(one.id, "waiting")
        status, answer = await admin.migrate(one.id, "i1")
        assert (status, answer.get("bytes")) == (200, 0)
        await one.reaches(5)
        for each in full:
            await each.cancel()
        status, answer = await admin.migrate(one.id, "i0")
        assert status == 200
        assert answer["bytes"] > 0
        output = await one
        assert output.sequences[0].tokens == await undisturbed(session, moving)


async def test_streams_go_on_when_their_instance_dies(server: Server) -> None:
    await two_instances(server)
    kinds = [looking(21), looking(22), looking(23, "video"), embedded()]
    async with open_session(server.url) as session:
        said = [await undisturbed(session, kind) for kind in kinds]
        asked, found = processed(server)
        streams = [begun(session, kind, f"replayed-{n}", 0) for n, kind in enumerate(kinds)]
        for each in streams:
            await each.reaches(20)
        server.signal_instance("i0", signal.SIGKILL)
        outputs = [await each for each in streams]
        assert [output.error for output in outputs] == [""] * len(kinds)
        assert [output.sequences[0].tokens for output in outputs] == said
    again, found_again = processed(server)
    assert (again - asked, found_again - found) == (5, 5), "what was seen before is not processed again"


def processed(server: Server) -> tuple[float, float]:
    """How often a processed image was looked for, and found."""

    def value(name: str) -> float:
        return sum(float(line.split()[-1]) for line in server.metrics().splitlines() if line.startswith(name))

    return value("vllm:mm_cache_queries_total"), value("vllm:mm_cache_hits_total")


async def test_streams_leave_a_drained_instance_while_they_run(server: Server) -> None:
    await two_instances(server)
    kinds = [looking(n, max_tokens=300) for n in (31, 32)] + [embedded(max_tokens=300)]
    async with open_session(server.url) as session:
        streams = [begun(session, kind, f"drained-{n}") for n, kind in enumerate(kinds)]
        for each in streams:
            await each.reaches(5)
        drained = await Admin(session).where(streams[0].id)
        assert server.post(f"/llumnix/v1/instances/{drained}/drain").is_success
        outputs = [await each for each in streams]
        assert [output.error for output in outputs] == [""] * len(kinds)
        assert [output.sequences[0].tokens for output in outputs] == [await undisturbed(session, k) for k in kinds]
    moves = [row for row in server.migrations() if row["source"] == drained and row["outcome"] == "moved"]
    assert streams[0].id in {row["request_id"] for row in moves}
