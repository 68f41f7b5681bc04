"""LoRA adapters that come and go while a server is in use: each is loaded under a new name, used, and unloaded."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import aiohttp
from frame.equality import undisturbed
from frame.kinds import Kind, prompt
from frame.lora import RANK, make_adapter
from frame.stream import COMPLETIONS, Output

FLAGS = ("--enable-lora", "--max-lora-rank", str(RANK), "--max-loras", "4")
"""Fewer than an instance sees in its life: each place has been another adapter's."""

ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
NAME = "adapter"
"""Of the kind of these requests."""

_ADAPTERS = 2
_REQUESTS = 2
"""With each adapter at once."""


class Adapters:
    """`folder`: where they lie."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self._paths = [make_adapter(folder / f"adapter-{number}", seed=number) for number in range(_ADAPTERS)]
        self._prompts = [prompt(rng, 30) for _ in range(_REQUESTS)]
        self._said: dict[tuple[int, int], Output] = {}
        self.loads = 0
        self.refused = 0

    async def learn(self, session: aiohttp.ClientSession) -> None:
        """What every request says undisturbed."""
        for adapter in range(_ADAPTERS):
            name = f"undisturbed-adapter-{adapter}"
            assert await self._load(session, adapter, name)
            for number in range(_REQUESTS):
                output = await undisturbed(session, self._kind(number, name), f"{name}-{number}")
                assert output.complete, f"an adapter fails undisturbed: {output.error}"
                self._said[adapter, number] = output
            await self.unload(session, name)

    async def load(self, session: aiohttp.ClientSession, rng: random.Random, name: str) -> list[tuple[Kind, Output]]:
        """The requests that may be made with it, and what they are to say; none if it was not loaded."""
        adapter = rng.randrange(_ADAPTERS)
        if not await self._load(session, adapter, name):
            self.refused += 1
            return []
        self.loads += 1
        return [(self._kind(number, name), self._said[adapter, number]) for number in range(_REQUESTS)]

    async def unload(self, session: aiohttp.ClientSession, name: str) -> None:
        async with session.post("/v1/unload_lora_adapter", json={"lora_name": name}):
            pass

    async def _load(self, session: aiohttp.ClientSession, adapter: int, name: str) -> bool:
        body = {"lora_name": name, "lora_path": str(self._paths[adapter])}
        async with session.post("/v1/load_lora_adapter", json=body) as answer:
            return answer.status == 200

    def _kind(self, number: int, model: str) -> Kind:
        body: dict[str, Any] = {"model": model, "prompt": self._prompts[number], "max_tokens": 300}
        return Kind(NAME, COMPLETIONS, body | {"temperature": 0, "ignore_eos": True})
