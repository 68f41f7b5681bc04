"""A KV cache as vLLM 0.32 makes it, with blocks whose every byte is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from llumnix.engine.vllm.instance.kv_views import kv_views

_AT_ONCE = 64
"""Blocks that are compared or filled in one go: a bound on the memory that this takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a bfloat16 cache. The default is LLaMA-7B's: 8 MiB a block."""

    layers: int = 32
    heads: int = 32
    head_size: int = 128
    tokens: int = 16
    """Of a block."""

    @property
    def block_bytes(self) -> int:
        """All layers, K and V."""
        return self.layers * self.heads * self.tokens * 2 * self.head_size * 2


class Cache:
    """`allocate_kv_cache` and `create_kv_cache_views` (vllm/v1/worker/utils.py): logical [L, B, H, N, C] over one int8
    buffer, in the order of `layout`, made in inference mode."""

    def __init__(self, shape: Shape, blocks: int, layout: str, device: torch.device) -> None:
        self.shape, self.blocks, self.layout, self.device = shape, blocks, layout, device
        sizes = {"L": shape.layers, "B": blocks, "H": shape.heads, "N": shape.tokens, "C": 2 * shape.head_size}
        strides, step = {}, 1
        for dim in reversed(layout):
            strides[dim], step = step, step * sizes[dim]
        with torch.inference_mode():
            buffer = torch.zeros(2 * step, dtype=torch.int8, device=device)
            five = torch.as_strided(
                buffer.view(torch.bfloat16), [sizes[dim] for dim in "LBHNC"], [strides[dim] for dim in "LBHNC"]
            )
        self.layers = [five[layer] for layer in range(shape.layers)]
        runner = SimpleNamespace(kv_caches=self.layers, kv_cache_config=SimpleNamespace(num_blocks=blocks))
        self.views = kv_views(runner)
        """As a worker of ours gives them to its pool."""

    def fill(self, ids: Sequence[int], salt: int = 0) -> None:
        """Gives these blocks the content of the blocks with their numbers; another `salt`, another content. After all
        that the device was given before, in whatever stream."""
        self.wait()
        for first in range(0, len(ids), _AT_ONCE):
            for number in range(len(self.layers)):
                self.write(number, ids[first : first + _AT_ONCE], salt)()
        self.wait()

    def write(self, layer: int, ids: Sequence[int], salt: int) -> Callable[[], None]:
        """What fills these blocks of a layer, all made ready: it launches a kernel, and waits for nothing."""
        target = self.layers[layer].view(torch.int16)
        with torch.inference_mode():
            there, content = self._there(ids), self._content(layer, ids, salt)

        def launch() -> None:
            with torch.inference_mode():
                target[there] = content

        return launch

    def wrong(self, here: Sequence[int], from_there: Sequence[int], salt: int = 0) -> int:
        """Blocks of `here` that do not hold, in all layers and bytes, what `fill` gave to those of `from_there`."""
        self.wait()
        wrong = torch.zeros(len(here), dtype=torch.bool, device=self.device)
        with torch.inference_mode():
            for number, layer in enumerate(self.layers):
                for first in range(0, len(here), _AT_ONCE):
                    part = slice(first, first + _AT_ONCE)
                    content = self._content(number, from_there[part], salt)
                    differs = layer.view(torch.int16)[self._there(here[part])] != content
                    wrong[part] |= differs.flatten(1).any(1)
        return int(wrong.sum())

    def wait(self) -> None:
        """For all that the device was given to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _there(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.as_tensor(ids, device=self.device)

    def _content(self, layer: int, ids: Sequence[int], salt: int) -> torch.Tensor:
        """Different in every place."""
        _, heads, tokens, width = self.layers[0].shape
        inside = torch.arange(heads * tokens * width, device=self.device, dtype=torch.int32)
        numbers = torch.as_tensor(ids, device=self.device, dtype=torch.int32).view(-1, 1, 1, 1)
        content = inside.view(1, heads, tokens, width) * 7 + numbers * 131 + layer * 17 + salt * 1009
        return (content & 0x3FFF).to(torch.int16)
