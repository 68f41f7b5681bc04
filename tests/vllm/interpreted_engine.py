"""An engine module (engine/port.py): vLLM on a CPU with its V2 model runner, which is the one that GPUs get.

Its kernels are Triton's, and Triton's own interpreter runs them here: exactly, and slowly. vLLM's CPU build brings the
runner, and takes a Triton that has a driver for CPUs. The one of the package index has none, so one stands in here,
before vLLM is imported: who interprets asks it for hardly anything.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}

# A stranger in vLLM's environment would be looked at by PyTorch and vLLM in all other tests, too.
sys.path.append(os.path.join(sys.prefix, "triton"))

import torch
import triton.backends
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.interpreter import InterpreterBuilder, interpreter_builder

from llumnix.engine.vllm import boot


class CpuDriver:
    """What Triton and vLLM ask of a driver when nothing is compiled."""

    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cpu", 0, 32)

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class Builder(InterpreterBuilder):  # type: ignore[misc]
    """Its masks are booleans: those of Triton 3.9 become integers where a scalar one is stretched, and are refused."""

    def create_masked_load(self, ptrs: Any, mask: Any, *rest: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return super().create_masked_load(ptrs, mask, *rest)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return super().create_masked_store(ptrs, value, mask, *rest)


triton.backends.backends.clear()  # those of GPUs would load the GPU's libraries
triton.backends.backends["cpu"] = triton.backends.Backend(None, CpuDriver)
driver.set_active(CpuDriver())
interpreter_builder.__class__ = Builder

listen, run_instance, run_front_end = boot.listen, boot.run_instance, boot.run_front_end


def prepare(argv: list[str], model: str) -> boot.VllmSetup:
    """As for vLLM itself. Raises RuntimeError if it would take its other runner."""
    setup = boot.prepare(argv, model)
    if not setup.config.use_v2_model_runner:
        raise RuntimeError("vLLM does not take its V2 runner")
    import vllm.v1.worker.cpu.model_runner  # noqa: F401 once, for all that are forked
    from vllm.v1.sample.ops import topk_topp_sampler

    # Its kernel for top-k and top-p converts what a loop counts with, which is a plain integer in the interpreter.
    topk_topp_sampler.HAS_TRITON = False  # type: ignore[attr-defined]
    return setup
