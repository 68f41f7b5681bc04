"""Triton on a CPU: its own interpreter runs kernels that are meant for GPUs, exactly and slowly. To be imported before
anything that looks for a Triton, in a program of its own.

The one of the package index has no driver for CPUs, so one stands in here; who interprets asks it for hardly anything.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

# A stranger in the environment would be looked at by PyTorch and vLLM in all other tests, too.
sys.path.append(os.path.join(sys.prefix, "triton"))

import torch
import triton.backends
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.interpreter import InterpreterBuilder, interpreter_builder


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
