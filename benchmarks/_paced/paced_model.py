"""A model each of whose steps lasts as long as on a device of its own: for more instances than there are cores.

Instances that share the cores slow each other down: moving a request to an idle one makes the others slower, which it
does not where every instance has its own device. This is the tiny model, computed for real, that then waits until
`paced_step_ms + paced_token_ms * tokens` (config.json) have passed.

A vLLM plugin (entry points beside this file), found through PYTHONPATH; see `frame.models`.
"""

from __future__ import annotations

import time
from typing import Any


def register() -> None:
    """Called by vLLM in every process that may need the model; it may call more than once."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.llama import LlamaForCausalLM

    class PacedForCausalLM(LlamaForCausalLM):
        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            config = vllm_config.model_config.hf_config
            self._step_s, self._token_s = 1e-3 * config.paced_step_ms, 1e-3 * config.paced_token_ms

        def forward(self, input_ids: Any, positions: Any, *args: Any, **kwargs: Any) -> Any:
            began = time.monotonic()
            result = super().forward(input_ids, positions, *args, **kwargs)
            due = began + self._step_s + self._token_s * len(positions)
            time.sleep(max(0.0, due - time.monotonic()))
            return result

    ModelRegistry.register_model("PacedForCausalLM", PacedForCausalLM)
