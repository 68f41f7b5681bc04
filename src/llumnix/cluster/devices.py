"""Whether instances can have the GPUs and the memory that they are to have, and blocks the ways that they are to go.

Part of what is checked before anything is started (preflight.py). All raise UsageError.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from llumnix.cluster.environment import SHARED_GPU_MEMORY, gpus_hold, runs_on_cpu, workers_per_instance
from llumnix.config import NIXL_VERSION
from llumnix.engine import gpus
from llumnix.errors import UsageError
from llumnix.flags import ServeArguments, has_flag

SHARED_MEMORY = Path("/dev/shm")
WORKERS_SHARE_BYTES = 10 * (24 << 20)
"""What vLLM wants to be free for the queue of a worker's answers, the largest that it makes (`MessageQueue`,
vllm/distributed/device_communicators/shm_broadcast.py). It takes as much as is written."""

_MIB, _GIB = 1024**2, 1024**3
_PARENT_BYTES = _GIB  # vLLM's code and the front end, once
_INSTANCE_BYTES = 200 * 1024**2  # private memory of an instance with the smallest model


def check_ways(ways: Sequence[str]) -> None:
    """Whether blocks can move by them."""
    if "cuda" in ways and runs_on_cpu():
        raise UsageError("--transports cuda is for GPUs, and this is vLLM's CPU build.")
    if "nixl" in ways and importlib.util.find_spec("nixl_cu13") is None:
        raise UsageError(
            f"NIXL is not installed: pip install nixl-cu13=={NIXL_VERSION}, or leave it out of --transports."
        )


def check_sharing(arguments: ServeArguments) -> None:
    """Whether instances can share GPUs as they are told to."""
    sharing = arguments.cluster.instances_per_gpu
    if sharing == 1:
        return
    if runs_on_cpu():
        raise UsageError("--instances-per-gpu is for GPUs, and this is vLLM's CPU build.")
    workers = workers_per_instance(arguments)
    if arguments.cluster.launcher == "ray" and workers > 1:
        raise UsageError(
            f"Ray gives out parts of one GPU only, and an instance has {workers} workers: no --instances-per-gpu then."
        )
    share = arguments.engine_flag("--gpu-memory-utilization")
    if has_flag(arguments.engine_flags, "--kv-cache-memory-bytes"):
        return  # each takes so much, and its share has to be free, but is not taken
    if share is not None and _number(share) * sharing >= 1:  # each takes a bit more than that
        raise UsageError(
            f"--gpu-memory-utilization is of one instance, and {sharing} on a GPU with {share} each do not fit: "
            f"say {SHARED_GPU_MEMORY / sharing:.2g}, or leave it out."
        )


def _number(text: str) -> float:
    """vLLM says what is wrong with one that is none."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def check_gpus(arguments: ServeArguments, there: gpus.GpuMachine | None, environment: Mapping[str, str]) -> int | None:
    """Whether there are as many as the instances need; else each that lacks some would fail, and start again. Returns
    for how many there are."""
    fit = gpus_hold(arguments, there, environment)
    if fit is None or there is None:  # then vLLM says that it finds no GPU
        return None
    devices = gpus.visible(environment, there) or []
    cluster, workers = arguments.cluster, workers_per_instance(arguments)
    if workers > 1 and any(device.startswith("MIG-") for device in devices):
        raise UsageError(f"An instance needs {workers} GPUs, and CUDA shows a process one part of a GPU (MIG) only.")
    scales = cluster.scaling == "on"
    most = max(cluster.instances, arguments.scaling.max_instances if scales else 0)
    if most > fit:
        flag = "--max-instances" if scales and arguments.scaling.max_instances > fit else "--instances"
        raise UsageError(_too_few_gpus(flag, most, fit, workers, len(devices)))
    if cluster.instances_per_gpu > 1 and not all(gpu.for_many for _, gpu in gpus.meant(devices, there)):
        raise UsageError(
            "Instances cannot share a GPU that is for one process only: nvidia-smi --compute-mode=DEFAULT."
        )
    return fit


def _too_few_gpus(flag: str, instances: int, fit: int, workers: int, devices: int) -> str:
    are = {0: "none is visible", 1: "1 is visible"}.get(devices, f"{devices} are visible")
    if devices < workers:
        needs = "a GPU" if workers == 1 else f"{workers} GPUs, one for each worker"
        return f"An instance needs {needs}, and {are}."
    share = -(-instances // (devices // workers))
    each = "one each" if workers == 1 else f"{workers} each"
    return (
        f"There are GPUs for {fit} of {instances} instances, which need {each}, and {are}: use {flag} {fit}, "
        f"or --instances-per-gpu {share} to have them share."
    )


def check_memory(arguments: ServeArguments) -> None:
    if not runs_on_cpu():
        return
    instances = arguments.cluster.instances
    needed = needed_bytes(instances, arguments.model)
    available = psutil.virtual_memory().available
    if needed > available:
        raise UsageError(
            f"{instances} instances need at least {needed / _GIB:.1f} GiB of memory, "
            f"but only {available / _GIB:.1f} GiB is free; use fewer --instances."
        )


def check_shared_memory(arguments: ServeArguments) -> None:
    """vLLM refuses the same when the model's code is imported, and instances are started in vain."""
    if workers_per_instance(arguments) == 1 or not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < WORKERS_SHARE_BYTES:
        raise UsageError(
            f"The workers of an instance need {WORKERS_SHARE_BYTES / _MIB:.0f} MiB of {SHARED_MEMORY}, where only "
            f"{free / _MIB:.0f} MiB are free: give it more (Docker: --shm-size=1g or --ipc=host; Kubernetes: an "
            "emptyDir in memory, mounted there)."
        )


def needed_bytes(instances: int, model: str | None) -> int:
    """A lower bound for the CPU build: each instance has its own copy of the weights."""
    weights = 0
    if model is not None and os.path.isdir(model):
        weights = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    return _PARENT_BYTES + instances * (_INSTANCE_BYTES + weights)
