"""A vLLM plugin, found through PYTHONPATH: workers with processes of their own are forked, as on GPUs. vLLM's platform
for CPUs has them spawned, whatever the environment says."""

from __future__ import annotations

import os
from typing import Any


def register() -> None:
    """Called by vLLM in every process that may need it; it may call more than once."""
    from vllm.platforms.cpu import CpuPlatform

    platform: Any = CpuPlatform
    if getattr(platform, "forks", False):
        return
    check = platform.check_and_update_config

    def check_and_fork(config: Any) -> None:
        check(config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    platform.check_and_update_config, platform.forks = staticmethod(check_and_fork), True
