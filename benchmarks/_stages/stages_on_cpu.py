"""What vLLM 0.32 lacks to run a pipeline of eager workers on CPUs: the later stages' buffer for what the first gives.

Its runner makes it in the dummy run that measures memory, which the CPU's leaves out when nothing is compiled; so the
first real step ends the engine (`GPUModelRunner.sync_and_gather_intermediate_tensors`, an assertion).

A vLLM plugin (entry points beside this file), found through PYTHONPATH.
"""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Called by vLLM in every process; it may call more than once."""
    from vllm.distributed import get_pp_group
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    runner: Any = CPUModelRunner
    if getattr(runner, "has_buffers", False):
        return
    load_model = runner.load_model

    def load_and_make_buffers(self: Any, *args: Any, **options: Any) -> None:
        load_model(self, *args, **options)
        if not get_pp_group().is_first_rank:
            self.intermediate_tensors = self.model.make_empty_intermediate_tensors(
                batch_size=self.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )

    runner.load_model, runner.has_buffers = load_and_make_buffers, True
