"""On a CPU, tokens are drawn and the ranks of log probabilities counted without a compiler.

vLLM has PyTorch compile the functions that do that (vllm/v1/sample/ops/), in each worker when its first request asks
for log probabilities or, in 0.31, for a token drawn without a seed: its engine stands still for it, seconds on a
machine that is quiet and a minute on one that is not. That saves copies of the logits, which on a CPU are a small part
of what a step reads. (In 0.31 it also keeps clear of an error of PyTorch's that 2.13 has no more: numbers of
`exponential_` that are 0.)
"""

from __future__ import annotations

import inspect
from typing import Any

from vllm.v1.sample import sampler
from vllm.v1.sample.ops import topk_topp_sampler

_COMPILED = ((sampler, "batched_count_greater_than"), (topk_topp_sampler, "compiled_random_sample"))
"""0.33 does not have the second any more."""


def sample_plainly() -> None:
    """In this process, from now on."""
    module: Any
    for module, name in _COMPILED:
        if hasattr(module, name):
            setattr(module, name, inspect.unwrap(getattr(module, name)))
