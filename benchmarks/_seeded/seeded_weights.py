"""Weights of any size that no file holds: drawn on the device from a seed, the same in every instance.

vLLM's own `--load-format dummy` draws them so small that a token follows from the one before it alone, so a stream
would say the same whatever is in its KV cache. These are as large as a model's that attends: what stands far back
decides the next token, too.

A vLLM plugin (entry points beside this file), found through PYTHONPATH; see `frame.models`.
"""

from __future__ import annotations

import zlib
from typing import Any

LOAD_FORMAT = "seeded"
_SPREAD, _HEAD_SPREAD = 1.6, 5.0
"""Of a matrix, times the square root of its columns: so that greedy output wanders instead of repeating itself."""


def register() -> None:
    """Called by vLLM in every process that may need it; it may call more than once."""
    import torch
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    class SeededModelLoader(DummyModelLoader):
        def load_weights(self, model: Any, model_config: Any) -> None:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if parameter.ndim < 2:
                        parameter.fill_(0.0 if name.endswith("bias") else 1.0)  # norms
                        continue
                    generator = torch.Generator(device=parameter.device).manual_seed(zlib.crc32(name.encode()))
                    spread = _HEAD_SPREAD if "lm_head" in name else _SPREAD
                    parameter.normal_(0.0, spread * parameter.shape[-1] ** -0.5, generator=generator)

    register_model_loader(LOAD_FORMAT)(SeededModelLoader)
