"""Keeps seeded requests alive, and their tokens right, when their prefill is cut into chunks on a CPU.

After every chunk but the last, vLLM 0.32 throws the sampled token away and winds the request's generator back by
four steps (`_bookkeeping_sync` in vllm/v1/worker/gpu_model_runner.py). Generators on a CPU cannot be wound back:
the call raises, and the engine ends. So here such a generator sits out the steps whose token is thrown away.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_model_runner import CPUModelRunner


class PatientCPUModelRunner(CPUModelRunner):
    """Has no state of its own, so that a runner that vLLM made can become one."""

    def sample_tokens(self, grammar_output: Any) -> Any:  # type: ignore[override]  # its decorator hides its type
        # The sampler and the bookkeeping after it both read this very dictionary, by row of the batch.
        generators = self.input_batch.generators
        thrown_away = self.discard_request_mask.np
        resting = {row: generators.pop(row) for row in list(generators) if thrown_away[row]}
        try:
            return super().sample_tokens(grammar_output)
        finally:
            generators.update(resting)


def make_patient(model_runner: Any) -> None:
    """vLLM's worker names the class of its runner and can be given no other. The V2 runner needs nothing."""
    if type(model_runner) is CPUModelRunner:
        model_runner.__class__ = PatientCPUModelRunner
