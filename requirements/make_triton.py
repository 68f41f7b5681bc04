"""Makes `.venv/triton` from triton.lock: a Triton whose interpreter runs kernels of vLLM's V2 model runner in tests."""

from __future__ import annotations

from make_aside import make_aside

_FOR_GPUS = ("_C/libproton.so", "backends/amd/lib", *(f"backends/nvidia/{name}" for name in ("bin", "include", "lib")))

if __name__ == "__main__":
    make_aside("triton", tuple(f"triton/{part}" for part in _FOR_GPUS))
