"""What vLLM gives each data parallel rank, or each process, of its own: here each instance has it.

All instances are forked from one configuration, so a port, a file's name or a shared memory's name in it would be
theirs all. Called in the instance's process before its engine is built; what is drawn at random follows once it is
warm (`worker.py:llumnix_draw_apart`).

Ports count up by the slot, which a successor inherits, so that whoever listens finds it again. Names of things that may
outlive their process have the instance's id, which is never used twice.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from vllm.model_executor.model_loader.weight_cache.protocol import get_socket_dir
from vllm.utils.torch_utils import OMP_NUM_THREADS_SET_BY_VLLM, startup_omp_num_threads

from llumnix.engine.port import ONE_THREAD_TO_FORK, InstanceSpec
from llumnix.errors import UsageError

_PORTS_EACH = 32  # more than an engine looks for
_LAST_PORT = 65535


def set_apart(config: Any, spec: InstanceSpec) -> None:
    """Changes the instance's own copies of the configuration and the environment."""
    config.instance_id = f"{config.instance_id}-{spec.id}"
    if any((config.kv_events_config, config.kv_transfer_config, config.ec_transfer_config)):
        # Not always: vLLM keeps compiled code by this number, too, and instances are to share it.
        config.parallel_config.data_parallel_index = spec.slot
        config.parallel_config.data_parallel_rank_local = 0  # its devices are the visible ones
    if config.kv_transfer_config is not None:
        config.kv_transfer_config.engine_id = f"{config.kv_transfer_config.engine_id}-{spec.id}"
    _own_folders(config, spec.id)
    if first := os.environ.get("VLLM_PORT", ""):
        os.environ["VLLM_PORT"] = _own_ports(first, spec.slot)


def refuse_to_fork_cuda() -> None:
    """Called before any instance is forked. Raises UsageError where none could use a GPU."""
    if torch.cuda.is_initialized():
        raise UsageError(
            "Something that vLLM loads, such as a plugin, uses CUDA at once; instances are forked from the process "
            "that loads it, and could not use a GPU any more."
        )


def share_cached_weights(config: Any) -> None:
    """Called before any instance is forked. With `--load-format ipc_cache` vLLM looks for what keeps the weights below
    its temporary folder, and each instance has one of its own."""
    for load in (config.load_config, getattr(config.speculative_config, "draft_load_config", None)):
        if load is not None and load.load_format == "ipc_cache" and "socket_path" not in load.model_loader_extra_config:
            load.model_loader_extra_config = {"socket_dir": get_socket_dir(), **load.model_loader_extra_config}


def share_compiled_headers() -> None:
    """Wherever `TORCHINDUCTOR_CACHE_DIR` is, PyTorch keeps the headers that it compiles for its kernels below the
    temporary folder (torch/_inductor/codecache.py, `_HEADER_DIR`). Workers of their own would do so in that of their
    instance, which goes with it, and each start would compile them again for seconds: there is a link to that place."""
    shared = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if shared is not None:
        os.makedirs(shared, exist_ok=True)
        os.symlink(os.path.abspath(shared), default_cache_dir())


def share_cores(processes: int) -> None:
    """While weights are loaded, among so many that do so, unless a user has said how many threads there are. vLLM does
    it where it makes the engines' processes itself (`_configure_uniproc_startup_threads` in vllm/v1/engine/utils.py);
    the mark has its workers go on with one thread afterwards (`set_torch_threads_for_runtime`)."""
    if os.environ.pop(ONE_THREAD_TO_FORK, None) is None:
        return
    threads = startup_omp_num_threads(processes)
    os.environ["OMP_NUM_THREADS"], os.environ[OMP_NUM_THREADS_SET_BY_VLLM] = str(threads), "1"
    torch.set_num_threads(threads)


def count_front_ends(config: Any, front_ends: int) -> None:
    """vLLM shares out among them what they may take of a GPU for images and videos, and leaves it free. On CPUs it
    reads the same number as one of engines, and gives each fewer cores."""
    if config.device_config.device_type == "cuda":
        config.parallel_config._api_process_count = front_ends


def _own_folders(config: Any, instance: str) -> None:
    profiler = config.profiler_config
    for name in ("torch_profiler_dir", "proton_profiler_dir"):
        if folder := getattr(profiler, name):
            setattr(profiler, name, os.path.join(folder, instance))  # not a Path: it may be an address
    if profiler.proton_profiler_dir:
        Path(profiler.proton_profiler_dir).mkdir(parents=True, exist_ok=True)
    if config.compilation_config.debug_dump_path is not None:
        config.compilation_config.debug_dump_path = Path(config.compilation_config.debug_dump_path, instance)


def _own_ports(first: str, slot: int) -> str:
    """Where this instance begins to look for free ports. vLLM refuses what is no number."""
    if not first.isdecimal():
        return first
    own = int(first) + _PORTS_EACH * slot
    return str(own) if own + _PORTS_EACH <= _LAST_PORT else first
