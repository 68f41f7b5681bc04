"""Copies by the kernel, which Triton's interpreter runs here: random runs between two pieces of host memory. And its
compiler takes it: that reads it otherwise. Says `right` at the end; a test calls it."""

from __future__ import annotations

import triton_on_cpus  # noqa: F401 first: PyTorch looks for a Triton when it is imported

# isort: split
import numpy as np
import torch
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from llumnix.transport import copy_kernel
from llumnix.transport.copy_kernel import ALIGNMENT, CopyKernel

PLACES = 40
PLACE_BYTES = 40_960
"""More than one program copies at once."""


def main() -> None:
    draw = np.random.default_rng(0)
    kernel = CopyKernel(torch.device("cpu"), PLACES)
    source, target = (torch.from_numpy(draw.integers(0, 256, PLACES * PLACE_BYTES, dtype=np.uint8)) for _ in "st")
    expected = target.clone()
    for count in (1, 7, PLACES):
        there, here = draw.permutation(PLACES)[:count], draw.permutation(PLACES)[:count]
        sizes = ALIGNMENT * draw.integers(1, PLACE_BYTES // ALIGNMENT + 1, count)
        for come_from, go_to, size in zip(there * PLACE_BYTES, here * PLACE_BYTES, sizes, strict=True):
            expected[go_to : go_to + size] = source[come_from : come_from + size]
        targets, sources = (
            (memory.data_ptr() + places * PLACE_BYTES).astype(np.uint64)
            for memory, places in ((target, here), (source, there))
        )
        assert kernel.takes(targets, sources, sizes.astype(np.uint64))
        kernel.copy(targets, sources, sizes.astype(np.uint64))
        assert torch.equal(target, expected), f"{count} runs"
    odd = np.array([8], dtype=np.uint64)
    assert not kernel.takes(odd, odd, odd)
    compile_for_gpus()
    print("right")


def compile_for_gpus() -> None:
    """Raises CompilationError. As far as it goes without NVIDIA's assembler."""
    target = GPUTarget("cuda", 90, 32)
    source = ASTSource(JITFunction(copy_kernel._copy.fn), {"runs": "*i64", "WORDS": "constexpr"}, {(1,): 2048})
    backend, context = CUDABackend(target), ir.context()
    options = backend.parse_options({"num_warps": 8})
    ir.load_dialects(context)
    backend.load_dialects(context)
    source.make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)


if __name__ == "__main__":
    main()
