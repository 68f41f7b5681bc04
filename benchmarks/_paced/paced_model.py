"""Steps that last as long as on a device of its own: for more instances than there are cores.

Instances that share the cores slow each other down: moving a request to an idle one makes the others slower, which it
does not where every instance has its own device. Here a model is computed for real, and then it waits until
`paced_step_ms + paced_token_ms * tokens` (config.json) have passed; twice that, as long as there is a file `slow-PID`
beside that one: a device that has become slower.

A vLLM plugin (entry points beside this file), found through PYTHONPATH; see `frame.models`.
"""

from __future__ import annotations

import os
import time
from typing import Any


def register() -> None:
    """Called by vLLM in every process that may need the model; it may call more than once."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    runner: Any = CPUModelRunner
    if getattr(runner, "is_paced", False):
        return
    forward = runner._model_forward

    def paced(self: Any, input_ids: Any, positions: Any, *args: Any, **kwargs: Any) -> Any:
        began, config = time.monotonic(), self.model_config.hf_config
        result = forward(self, input_ids, positions, *args, **kwargs)
        pace_ms = config.paced_step_ms + config.paced_token_ms * positions.shape[-1]
        if os.path.exists(f"{self.model_config.model}/slow-{os.getpid()}"):
            pace_ms *= 2
        time.sleep(max(0.0, began + 1e-3 * pace_ms - time.monotonic()))
        return result

    runner._model_forward, runner.is_paced = paced, True
