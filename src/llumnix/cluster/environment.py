"""What the engine's processes get beyond the user's own words: environment variables and default flags."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import secrets
import sys
import sysconfig
import tempfile
from collections.abc import Mapping

import psutil

from llumnix.cluster import flashinfer
from llumnix.cluster.ports import LOOPBACK
from llumnix.config import ClusterConfig
from llumnix.engine import gpus
from llumnix.engine.port import ONE_THREAD_TO_FORK
from llumnix.flags import DEFAULT_ENGINE, ServeArguments, has_flag
from llumnix.vllm_words import stays_here, variable_rows

# One arithmetic thread per process unless the user says otherwise: instances share the cores, and a process that
# has a thread pool must not fork. Numba looks for drafts (ngram): vLLM lets it use one thread, yet all of its pool meet
# after each step, and where cores are busy that takes several times as long as the step.
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")

_ABROAD = ("VLLM_", "HF_", "LLUMNIX_", "TOKENIZERS_PARALLELISM", *_ONE_THREAD)
_AT_HOME = ("HF_HOME", "HF_HUB_CACHE", "LLUMNIX_URL", "LLUMNIX_API_KEY")

# What these name may be on the model hub, unless it is a path that is there.
_MAY_BE_ON_THE_HUB = (
    *("--tokenizer", "--hf-config-path", "--generation-config", "--lora-modules", "--default-mm-loras"),
    *("--speculative-config", "--spec-model", "--kv-transfer-config", "--additional-config", "--hf-overrides"),
    *("--model-loader-extra-config", "--enable-lora", "--chat-template", "--io-processor-plugin"),
)

SHARED_GPU_MEMORY = 0.9
"""Of a GPU, what all instances on it take together. vLLM takes 0.92; each has a CUDA context of its own besides."""

_TINY_FLAGS = {
    "--served-model-name": "tiny",
    "--dtype": "float32",
    "--max-model-len": "8192",
    "--block-size": "32",  # the smallest that vLLM has kernels for on a CPU
    "--kv-cache-memory-bytes": str(64 * 1024 * 1024),
    "--enforce-eager": None,
}


def runs_on_cpu() -> bool:
    """True for vLLM's CPU build, of either name. Says nothing about the machine."""
    try:
        return "+cpu" in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return True


def child_environment(arguments: ServeArguments, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of the nursery and so of all its children; what the user set stays."""
    defaults = {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"} | _on_loopback()
    with contextlib.suppress(FileNotFoundError):  # there is none that can be written to
        # Else compiled code would be in the temporary folder of an instance, which goes with it.
        defaults["TORCHINDUCTOR_CACHE_DIR"] = f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"
    if runs_on_cpu():
        defaults |= dict.fromkeys(_ONE_THREAD, "1")
        if workers_per_instance(arguments) == 1:
            defaults["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # keeps the worker inside the engine's process
        else:
            defaults["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # else each worker wants a NUMA node of its own
    else:
        defaults |= _one_thread_until_forked(inherited)
    if arguments.model is None and all_is_here(arguments):
        defaults["HF_HUB_OFFLINE"] = "1"
    return with_kernels(defaults | dict(inherited))


def with_kernels(environment: dict[str, str]) -> dict[str, str]:
    """So that engines find what compiles kernels, and draw by those that can be had."""
    return _drawing(_with_programs(environment))


def _with_programs(environment: dict[str, str]) -> dict[str, str]:
    """Those that packages bring (ninja, which vLLM's call by its name) are found also where nobody has activated the
    environment that they are in; last."""
    own, path = sysconfig.get_path("scripts"), environment.get("PATH", os.defpath)
    return environment if own in path.split(os.pathsep) else environment | {"PATH": f"{path}{os.pathsep}{own}"}


def _drawing(environment: dict[str, str]) -> dict[str, str]:
    """By vLLM's own kernels where FlashInfer's cannot be had, unless the user says otherwise."""
    if runs_on_cpu() or flashinfer.why_not(environment) is None:
        return environment
    return {flashinfer.SAMPLER: "0"} | environment


def _one_thread_until_forked(inherited: Mapping[str, str]) -> dict[str, str]:
    """On GPUs, for the process that forks the engines: a pool of threads that was used before hangs in who is forked.
    NumPy's is made where it is imported; PyTorch's is the engines', which share the cores out (`apart.share_cores`)."""
    of_pytorch = {} if "OMP_NUM_THREADS" in inherited else {"OMP_NUM_THREADS": "1", ONE_THREAD_TO_FORK: "1"}
    return {"OPENBLAS_NUM_THREADS": "1"} | of_pytorch


def _on_loopback() -> dict[str, str]:
    """Has PyTorch and NCCL listen on loopback alone. What they open, for one worker too, asks nobody for a key, and is
    else where the machine's own name leads, often an address that others reach. No instance spans machines."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == LOOPBACK for each in addresses):
            return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}  # `=`: that one, not what begins so
    return {}


def all_is_here(arguments: ServeArguments) -> bool:
    """Whether nothing that the flags name could be on the model hub."""
    given = arguments.engine_flags
    named = [word.partition("=")[0].partition(".")[0] for word in given]
    return not any(
        flag in named and not os.path.isfile(arguments.engine_flag(flag) or "") for flag in _MAY_BE_ON_THE_HUB
    )


def engine_flags(arguments: ServeArguments) -> tuple[str, ...]:
    """The user's flags of vLLM's, and before them the defaults that differ from vLLM's own."""
    given = arguments.engine_flags
    defaults: dict[str, str | None] = {}
    if not has_flag(given, "--uds"):
        defaults["--host"] = "127.0.0.1"
    if arguments.engine == DEFAULT_ENGINE:
        # Lets priorities count in the queue, and in it who needs little start first (policy/waiting_order.py).
        defaults["--scheduling-policy"] = "priority"
        if not has_flag(given, "--disable-fastapi-docs", "--root-path"):  # below which it does not find its parts
            defaults["--enable-offline-docs"] = None  # the page at /docs needs nothing from the internet
        sharing = arguments.cluster.instances_per_gpu
        if sharing > 1:  # vLLM wants so much to be free, also where --kv-cache-memory-bytes says what it takes
            defaults["--gpu-memory-utilization"] = f"{SHARED_GPU_MEMORY / sharing:.3f}"
    if arguments.model is None:
        defaults |= _TINY_FLAGS
    words: list[str] = []
    for flag, value in defaults.items():
        if not has_flag(given, flag):
            words += [flag] if value is None else [flag, value]
    return (*words, *given)


def parallel_starts(cluster: ClusterConfig) -> int:
    """Instances that start at once. On this machine more would only take each other's cores; on Ray's nodes each has
    cores of its own, but only Ray knows which share a GPU, and those must not."""
    if cluster.launcher == "ray":
        return sys.maxsize if cluster.instances_per_gpu == 1 else 1
    return max(2, len(os.sched_getaffinity(0)))


def gpus_hold(arguments: ServeArguments, there: gpus.GpuMachine | None, environment: Mapping[str, str]) -> int | None:
    """How many instances there are GPUs for on this machine; None where nothing says so: for engines that need none,
    where there is no NVML, and on Ray's nodes. Raises UsageError as `gpus.visible`."""
    ours = arguments.engine == DEFAULT_ENGINE and arguments.cluster.launcher == "local" and not runs_on_cpu()
    if not ours or there is None:
        return None
    devices = gpus.visible(environment, there) or []
    return len(devices) // workers_per_instance(arguments) * arguments.cluster.instances_per_gpu


def instance_needs(cluster: ClusterConfig, workers: int) -> dict[str, float]:
    """What Ray sets aside for one instance, in Ray's names."""
    cpus = float(workers) if cluster.instance_cpus is None else cluster.instance_cpus
    return {"CPU": cpus} if runs_on_cpu() else {"CPU": cpus, "GPU": workers / cluster.instances_per_gpu}


def ray_environment(cluster: ClusterConfig, inherited: Mapping[str, str]) -> dict[str, str]:
    """For the process that makes a Ray cluster on the spot; Ray reads it as it is imported.

    A token that nobody else knows: nobody but us joins that cluster, or runs anything on it.
    """
    if cluster.launcher != "ray" or cluster.ray_address or "RAY_AUTH_MODE" in inherited:
        return {}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}


def environment_abroad(environment: Mapping[str, str]) -> dict[str, str]:
    """Of the nursery's environment, what the engines on other machines get, too: words for the engine, no places."""
    of_vllm = {row["variable"] for row in variable_rows()}
    return {
        name: value
        for name, value in environment.items()
        if (name in of_vllm or name.startswith(_ABROAD)) and name not in _AT_HOME and not stays_here(name)
    }


def node_environment(inherited: Mapping[str, str], sent: Mapping[str, str]) -> dict[str, str]:
    """On another machine: what its nursery and so its instance get, of what is set there and what was sent."""
    return with_kernels(_on_loopback() | dict(inherited) | dict(sent))


def workers_per_instance(arguments: ServeArguments) -> int:
    workers = 1
    for flag in ("--tensor-parallel-size", "--pipeline-parallel-size", "--prefill-context-parallel-size"):
        value = arguments.engine_flag(flag) or "1"
        workers *= max(1, int(value)) if value.isdecimal() else 1  # nonsense is reported when vLLM parses it
    return workers
