"""vLLM's kernels in Triton's interpreter, in a process that has not imported vLLM yet."""

from __future__ import annotations

import triton_on_cpus  # noqa: F401 vLLM looks for a Triton when it is imported


def leave_one_out() -> None:
    """Its kernel for top-k and top-p converts what a loop counts with, which is a plain integer in the interpreter."""
    from vllm.v1.sample.ops import topk_topp_sampler

    topk_topp_sampler.HAS_TRITON = False  # type: ignore[attr-defined]
