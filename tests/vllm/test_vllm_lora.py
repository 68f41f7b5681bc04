"""LoRA adapters: a request that uses one moves, and says the same."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from frame.checked import Server
from frame.equality import Plan, moving, undisturbed
from frame.kinds import Kind, prompt
from frame.lora import RANK, make_adapter
from frame.server import wait_for
from frame.stream import COMPLETIONS, open_session

pytestmark = pytest.mark.timeout(240)

ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


def flags(folder: Path) -> tuple[str, ...]:
    adapter = make_adapter(folder / "north", seed=1)
    usual = ("--no-migration", "--enable-lora", "--max-lora-rank", str(RANK), "--max-loras", "2")
    return *usual, "--lora-modules", f"north={adapter}"


def kind(seed: int, model: str) -> Kind:
    body: dict[str, Any] = {"model": model, "prompt": prompt(random.Random(seed), 30), "max_tokens": 400}
    return Kind("lora", COMPLETIONS, body | {"temperature": 0, "ignore_eos": True})


async def _same_when_moved(server: Server, model: str, instances: list[str]) -> None:
    async with open_session(server.url) as session:
        plans = [Plan(instances, random.Random(number), most_moves=4) for number in range(3)]
        moved = await asyncio.gather(
            *(moving(session, kind(n, model), f"{model}-{n}", plan) for n, plan in enumerate(plans))
        )
        still = await asyncio.gather(*(undisturbed(session, kind(n, model), f"{model}-still-{n}") for n in range(3)))
        plain = await asyncio.gather(*(undisturbed(session, kind(n, "tiny"), f"{model}-plain-{n}") for n in range(3)))
    assert [output.error for output, _ in moved] == [""] * 3
    assert [output.sequences[0].tokens for output, _ in moved] == [output.sequences[0].tokens for output in still]
    assert all(a.sequences[0].tokens != b.sequences[0].tokens for a, b in zip(still, plain, strict=True))
    assert sum(moves.made for _, moves in moved) >= 2


async def test_request_with_an_adapter_moves(server: Server) -> None:
    await _same_when_moved(server, "north", ["i0", "i1"])


async def test_request_without_an_adapter_says_the_same_beside_adapters(server: Server, tmp_path: Path) -> None:
    """vLLM's CPU kernels take what lies in the last place for it, once that is filled: with two adapters here it is."""
    adapter = make_adapter(tmp_path / "east", seed=3)
    body = {"lora_name": "east", "lora_path": str(adapter)}
    assert server.post("/v1/load_lora_adapter", json=body).status_code == 200
    async with open_session(server.url) as session:
        alone = await undisturbed(session, kind(0, "tiny"), "alone")
        batch = [(model, n) for n in range(4) for model in ("tiny", "north", "east")]
        said = await asyncio.gather(*(undisturbed(session, kind(0, model), f"{model}-{n}") for model, n in batch))
    without = [output for (model, _), output in zip(batch, said, strict=True) if model == "tiny"]
    assert [output.sequences[0].tokens for output in without] == [alone.sequences[0].tokens] * 4
    assert server.post("/v1/unload_lora_adapter", json={"lora_name": "east"}).status_code == 200


async def test_adapter_loaded_while_serving_is_on_all_instances(server: Server, tmp_path: Path) -> None:
    """Those that join later included."""
    adapter = make_adapter(tmp_path / "south", seed=2)
    answer = server.post("/v1/load_lora_adapter", json={"lora_name": "south", "lora_path": str(adapter)})
    assert answer.status_code == 200, answer.text
    assert server.post("/llumnix/v1/instances", json={"count": 1}).status_code == 202
    wait_for(lambda: len(server.instances()) == 3, "a third instance")
    assert server.post("/llumnix/v1/instances/i0/drain").status_code == 202
    wait_for(lambda: server.instance("i0")["state"] == "stopped", "the end of the first instance")
    await _same_when_moved(server, "south", ["i1", "i2"])
