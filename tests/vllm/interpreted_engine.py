"""An engine module (engine/port.py): vLLM on a CPU with its V2 model runner, which is the one that GPUs get.

Its kernels are Triton's, and Triton's own interpreter runs them here (interpreted_kernels.py). vLLM's CPU build brings
the runner, and takes a Triton that has a driver for CPUs.
"""

from __future__ import annotations

import os

os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"

import interpreted_kernels  # first

# isort: split
from llumnix.engine.vllm import boot

listen, run_instance, run_front_end = boot.listen, boot.run_instance, boot.run_front_end


def prepare(argv: list[str], model: str) -> boot.VllmSetup:
    """As for vLLM itself. Raises RuntimeError if it would take its other runner."""
    setup = boot.prepare(argv, model)
    if not setup.config.use_v2_model_runner:
        raise RuntimeError("vLLM does not take its V2 runner")
    import vllm.v1.worker.cpu.model_runner  # noqa: F401 once, for all that are forked

    interpreted_kernels.leave_one_out()
    return setup
