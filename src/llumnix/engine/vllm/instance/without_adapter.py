"""On a CPU, requests without an adapter are computed without one, whoever shares their batch.

vLLM 0.32 gives the rows of such requests the index -1. Its kernels for GPUs skip that; those for CPUs
(vllm/lora/ops/torch_ops/lora_ops.py) index with it, which is the last of `--max-loras` places: once an adapter has
been there, such requests get its output, in linear and embedding layers beside a request with any adapter, in the head
always. So here these rows are as they were before an adapter's part was added.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU


class StrictPunicaWrapperCPU(PunicaWrapperCPU):
    """Has no state of its own, so that a wrapper that vLLM made can become one. Whatever vLLM's layers add for an
    adapter, they add with one of these methods."""

    def add_expand(self, y: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        with _untouched(y, self.token_lora_indices):
            super().add_expand(y, *args, **kwargs)

    def add_lora_embedding(self, y: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        with _untouched(y, self.token_lora_indices):
            super().add_lora_embedding(y, *args, **kwargs)

    def add_lora_logits(self, y: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        with _untouched(y, self.sampler_indices):
            super().add_lora_logits(y, *args, **kwargs)


@contextmanager
def _untouched(y: torch.Tensor, places: torch.Tensor) -> Iterator[None]:
    """The rows that have no place, as they are now."""
    rows = y.view(-1, y.shape[-1])
    without = (places < 0).nonzero().squeeze(1)
    kept = rows[without]
    yield
    rows[without] = kept


def make_strict(lora_manager: Any) -> None:
    """vLLM's platform names the class of the wrappers and can be given no other. Compiled code would not see the
    change, but with adapters vLLM compiles nothing on CPUs."""
    for wrapper in lora_manager._adapter_manager.punica_wrapper_mapping.values():
        if type(wrapper) is PunicaWrapperCPU:
            wrapper.__class__ = StrictPunicaWrapperCPU
