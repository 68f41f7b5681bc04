"""Steps like those of an engine that decodes a LLaMA-7B: matrix products of its shapes and a read of KV, as a CUDA
graph; one step is in flight while the next is prepared, with Python between them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_SEEN_BLOCKS = 64
"""Of each layer, that a step reads: stands for attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadShape:
    layers: int = 32
    hidden: int = 4096
    batch: int = 32
    python_ms: float = 3.0
    """What an engine's main thread does between two steps, under the GIL."""


class Load:
    def __init__(self, shape: LoadShape, layers_of_cache: Sequence[torch.Tensor], device: torch.device) -> None:
        self._shape, self._cache, self._device = shape, layers_of_cache, device
        self._dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        hidden = shape.hidden
        inner = hidden * 43 // 16 // 64 * 64
        shapes = ((hidden, 3 * hidden), (hidden, hidden), (hidden, 2 * inner), (inner, hidden))
        self._weights = [tuple(self._matrix(*of) for of in shapes) for _ in range(shape.layers)]
        self._input = torch.randn(shape.batch, hidden, device=device, dtype=self._dtype)
        self._graph: Any = None
        if device.type == "cuda":
            self._capture()

    def steps(self, seconds: float) -> list[float]:
        """Seconds of each step, made one after the other for so long."""
        durations: list[float] = []
        turn = 0
        self._launch(turn)
        last = time.perf_counter()
        end = last + seconds
        while last < end:
            turn += 1
            self._launch(turn)
            self._wait(turn - 1)
            busy_until = time.perf_counter() + self._shape.python_ms / 1e3
            while time.perf_counter() < busy_until:
                pass
            now = time.perf_counter()
            durations.append(now - last)
            last = now
        self._wait(turn)
        return durations

    def _matrix(self, rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, device=self._device, dtype=self._dtype) * 0.01

    def _capture(self) -> None:
        self._stream: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        size = self._shape.batch, self._shape.hidden
        self._outputs = [torch.empty(size, dtype=self._dtype, pin_memory=True) for _ in range(2)]
        self._events: list[Any] = [torch.cuda.Event(blocking=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._run()
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._output = self._run()
        self._graph = graph

    def _run(self) -> torch.Tensor:
        x = self._input
        for number, (attention_in, attention_out, up, down) in enumerate(self._weights):
            seen = self._cache[number % len(self._cache)][:_SEEN_BLOCKS].float().mean().to(x.dtype)
            h = ((x @ attention_in)[:, : x.shape[1]] + seen) @ attention_out
            gate, value = (h @ up).chunk(2, dim=1)
            x = x + (torch.nn.functional.silu(gate) * value) @ down
            x = x / (x.abs().mean() + 1)
        return x

    def _launch(self, turn: int) -> None:
        with torch.inference_mode():
            if self._graph is None:
                self._run()
                return
            with torch.cuda.stream(self._stream):
                self._graph.replay()
                self._outputs[turn % 2].copy_(self._output, non_blocking=True)
                self._events[turn % 2].record(self._stream)

    def _wait(self, turn: int) -> None:
        if self._graph is not None:
            self._events[turn % 2].synchronize()


def spread(durations: Sequence[float]) -> dict[str, float]:
    """Of steps."""
    ms = np.array(durations) * 1e3
    return {
        "steps": len(ms),
        "mean_ms": round(float(ms.mean()), 3),
        "p50_ms": round(float(np.quantile(ms, 0.5)), 3),
        "p99_ms": round(float(np.quantile(ms, 0.99)), 3),
        "max_ms": round(float(ms.max()), 3),
    }
