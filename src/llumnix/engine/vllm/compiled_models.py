"""Makes vLLM find the compiled models again that it stores on CPUs.

With compilation on, vLLM keeps a compiled model in `VLLM_CACHE_ROOT`, and the next engine that is configured alike is
to load it instead of compiling for ten seconds and more. vLLM 0.32 then calls `finalize_loading` on it, which only the
models of its GPU backend have: on CPUs, where the backend is PyTorch's own, it stores every model and never loads one.
There is nothing left to finalize in those; they are given a method that does nothing.

As vLLM never loaded one, its key leaves out what matters on CPUs: the compiled code is of this processor's
instructions, and its loops are cut for this number of threads.
"""

from __future__ import annotations

import platform
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._inductor import codecache
from vllm.compilation import caching, decorators
from vllm.platforms import current_platform

_CPUINFO = Path("/proc/cpuinfo")


def load_compiled_models() -> None:
    """In this process, from now on, if it is for CPUs. To be called once."""
    if not current_platform.is_cpu():
        return
    load, factors = decorators._try_load_aot_compiled_fn, caching.aot_compile_hash_factors

    @wraps(load)
    def load_complete(model: Any, path: str) -> Any:
        no_headers = mock.patch.object(codecache, "_precompile_header", _no_header)
        with mock.patch.object(torch.compiler, "load_compiled_function", _load), no_headers:
            return load(model, path)

    @wraps(factors)
    def factors_with_processor(vllm_config: Any) -> list[str]:
        return [*factors(vllm_config), processor(), str(torch.get_num_threads())]

    decorators._try_load_aot_compiled_fn = load_complete  # type: ignore[assignment]
    caching.aot_compile_hash_factors = factors_with_processor


def import_ahead() -> None:
    """What loading a compiled model needs, for the children of this process. Starts no thread."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    codecache.torch_key()  # reads all of PyTorch
    pick_vec_isa()  # tries the compiler


def processor() -> str:
    """What this processor can do, as Linux lists it."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    can = [line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))]
    return f"{platform.machine()} {' '.join(sorted(can[0].split())) if can else platform.processor()}"


_load_from_file = torch.compiler.load_compiled_function


def _load(*args: Any, **kwargs: Any) -> Any:
    loaded: Any = _load_from_file(*args, **kwargs)
    compiled = loaded._artifacts.compiled_fn
    if not hasattr(compiled, "finalize_loading"):
        compiled.finalize_loading = _nothing
    return loaded


def _no_header(*_args: Any, **_kwargs: Any) -> str:
    """Instead of a header that is compiled beforehand, for kernels that have to be compiled. These are there; but each
    process would have the compiler read the header, to see whether it has changed."""
    return ""


def _nothing(_vllm_config: Any) -> None:
    pass
