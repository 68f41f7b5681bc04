"""Makes `.venv/triton` from triton.lock: a Triton whose interpreter runs kernels of vLLM's V2 model runner in tests.

The environment has no Triton, and is to have none: PyTorch and vLLM would look at it in everything that runs on a CPU.
So it is in a folder of its own, which those tests alone put on their path; and only what an interpreter needs of it.

Exit code 2 and one sentence when it cannot be made.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from make_env import ROOT, VENV, install, say

LOCK = ROOT / "requirements" / "triton.lock"
HOME = VENV / "triton"
STAMP = HOME / "made-from"

_FOR_GPUS = ("_C/libproton.so", "backends/amd/lib", *(f"backends/nvidia/{name}" for name in ("bin", "include", "lib")))


def main() -> None:
    wanted = LOCK.read_text()
    lock = os.open(ROOT / "requirements", os.O_RDONLY)  # two makes at once take turns
    fcntl.flock(lock, fcntl.LOCK_EX)
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    shutil.rmtree(HOME, ignore_errors=True)
    say("installing requirements/triton.lock")
    install(["--no-deps", "--target", str(HOME), "-r", str(LOCK)], "requirements/triton.lock cannot be installed")
    for name in _FOR_GPUS:
        _remove(HOME / "triton" / name)
    STAMP.write_text(wanted)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
