"""FlashInfer, with whose kernels vLLM draws tokens on GPUs unless it is told otherwise: whether they can be had here.

The package has their sources. What compiles them is looked for when a request first has `top_p` or `top_k`, which most
models have by themselves; where it is missing, that step ends the engine, and its replay would end the next one. vLLM
(0.32) looks for none of it before it chooses FlashInfer. Its own kernels draw from the same distribution.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping

SAMPLER = "VLLM_USE_FLASHINFER_SAMPLER"

_TOOLKIT = "/usr/local/cuda"


def why_not(environment: Mapping[str, str]) -> str | None:
    """What it lacks, in a process with this environment; None if it has all: compiled kernels, or what makes them."""
    if importlib.util.find_spec("flashinfer") is None:
        return "FlashInfer is not installed"
    if importlib.util.find_spec("flashinfer_jit_cache") is not None:
        return None
    path = environment.get("PATH", os.defpath)
    if not os.access(_nvcc(environment, path), os.X_OK):
        return "FlashInfer finds no nvcc (CUDA_HOME, PATH, /usr/local/cuda)"
    compiler, *_ = [*environment.get("CXX", "").split(), "c++"]
    for program in (compiler, "ninja"):
        if shutil.which(program, path=path) is None:
            return f"FlashInfer finds no {program}"
    return None


def _nvcc(environment: Mapping[str, str], path: str) -> str:
    """Where it looks for it (flashinfer/jit/cpp_ext.py)."""
    if own := environment.get("FLASHINFER_NVCC"):
        return own
    toolkit = environment.get("CUDA_HOME") or environment.get("CUDA_PATH")
    found = shutil.which("nvcc", path=path)
    if not toolkit and found is not None:
        return found
    return os.path.join(toolkit or _TOOLKIT, "bin", "nvcc")
