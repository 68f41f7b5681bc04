"""LoRA adapters with vLLM's V2 model runner: requests with and without one move, and say the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import interpreted
import pytest
from frame.checked import Server
from frame.equality import Plan, moving, undisturbed
from frame.kinds import Kind, prompt
from frame.lora import RANK, make_adapter
from frame.stream import COMPLETIONS, open_session
from server_garage import own_server

pytestmark = [pytest.mark.timeout(280), pytest.mark.vllm, pytest.mark.nightly]

MODELS = ("north", "tiny", "north", "tiny")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("lora")
    flags = (*interpreted.FLAGS, "--enable-lora", "--max-lora-rank", str(RANK), "--max-loras", "2")
    adapter = make_adapter(folder / "north", seed=1)
    modules = ("--lora-modules", f"north={adapter}")
    with own_server(folder, *flags, *modules, environment=interpreted.ENVIRONMENT) as running:
        yield running


def kind(seed: int, model: str) -> Kind:
    body = {"model": model, "prompt": prompt(random.Random(seed), 30), "max_tokens": 100, "temperature": 0}
    return Kind("lora", COMPLETIONS, body | {"ignore_eos": True})


async def test_requests_with_and_without_an_adapter_move(server: Server) -> None:
    kinds = [kind(number // 2, model) for number, model in enumerate(MODELS)]
    plans = [Plan(["i0", "i1"], random.Random(number), most_moves=4, last_move=50) for number in range(len(kinds))]
    async with open_session(server.url, timeout_s=250) as session:
        moved = await asyncio.gather(
            *(
                moving(session, kind, f"moved-{n}", plan)
                for n, (kind, plan) in enumerate(zip(kinds, plans, strict=True))
            )
        )
        still = await asyncio.gather(*(undisturbed(session, kind, f"still-{n}") for n, kind in enumerate(kinds)))
    assert [output.failure for output, _ in moved] == [""] * len(kinds)
    said = [output.sequences[0].tokens for output, _ in moved]
    assert said == [output.sequences[0].tokens for output in still]
    assert said[0] != said[1], "the adapter changes what is said"
    assert all(moves.made for _, moves in moved)
