"""On a CPU, the ranks of log probabilities are counted without a compiler.

vLLM has PyTorch compile the function that counts them (vllm/v1/sample/ops/logprobs.py), in each worker when its first
request asks for log probabilities: its engine stands still for it, seconds on a machine that is quiet and a minute on
one that is not. That saves copies of the logits, which on a CPU are a small part of what a step reads.
"""

from __future__ import annotations

import inspect
from typing import Any

from vllm.v1.sample import sampler


def count_plainly() -> None:
    """In this process, from now on."""
    module: Any = sampler
    module.batched_count_greater_than = inspect.unwrap(module.batched_count_greater_than)
