"""What `llumnix doctor` finds on machines with GPUs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from llumnix.cluster import flashinfer
from llumnix.cluster.devices import check_gpus, check_sharing
from llumnix.cluster.environment import child_environment, engine_flags, workers_per_instance
from llumnix.engine import gpus
from llumnix.errors import UsageError
from llumnix.findings import GIB, Finding, Mark
from llumnix.flags import ServeArguments, flag_value, has_flag

_MOSTLY_FREE = 0.92
"""What vLLM takes of a GPU unless it is told."""
_CUDA = re.compile(r"^cuda\b.*= '(\d+)\.", re.MULTILINE)  # in torch/version.py
_SHOWN = 6


def examine_gpus(arguments: ServeArguments) -> list[Finding]:
    """With vLLM's build for them."""
    found = _gpus(gpus.installed(), arguments, os.environ)
    return [*found, _compiler(), _what_vllm_needs(), _sampler(arguments)]


def _gpus(there: gpus.GpuMachine | None, arguments: ServeArguments, environment: Mapping[str, str]) -> list[Finding]:
    if there is None:
        advice = "Install NVIDIA's driver; in a container, start it with the GPUs (Docker: --gpus all)."
        return [Finding(Mark.BAD, "no driver for a GPU answers", advice)]
    findings = [_driver(there, _cuda_of_torch())]
    try:
        check_sharing(arguments)
        check_gpus(arguments, there, environment)
        devices = gpus.visible(environment, there) or []
    except UsageError as error:
        return [*findings, Finding(Mark.BAD, "GPUs", str(error))]
    if arguments.cluster.launcher != "local":
        return findings  # instances are on other machines
    if devices and devices[0].startswith("MIG-"):
        return [*findings, Finding(Mark.GOOD, f"parts of GPUs that are visible: {len(devices)}")]
    cluster = arguments.cluster
    used = devices[: -(-cluster.instances // cluster.instances_per_gpu) * workers_per_instance(arguments)]
    share = _wanted_share(arguments)
    return findings + [_gpu(index, gpu, share) for index, gpu in gpus.meant(used, there)]


def _wanted_share(arguments: ServeArguments) -> float:
    """Of a GPU's memory, what must be free when the first instance starts on it, as far as flags say."""
    each = flag_value(engine_flags(arguments), "--gpu-memory-utilization")
    said = has_flag(arguments.engine_flags, "--kv-cache-memory-bytes")  # what the others take is less than their share
    try:
        return _MOSTLY_FREE if each is None else float(each) * (1 if said else arguments.cluster.instances_per_gpu)
    except ValueError:  # vLLM says so
        return 0.0


def _driver(there: gpus.GpuMachine, needed: int | None) -> Finding:
    what = f"driver {there.driver}, for CUDA up to {there.cuda[0]}.{there.cuda[1]}"
    if needed is not None and needed > there.cuda[0]:
        return Finding(Mark.BAD, what, f"PyTorch needs a driver for CUDA {needed}: update the driver.")
    return Finding(Mark.GOOD, what)


def _cuda_of_torch() -> int | None:
    """The CUDA that PyTorch is built for, by its own word: the package index has no builds in its versions."""
    found = importlib.util.find_spec("torch")
    for folder in (found and found.submodule_search_locations) or ():
        own = Path(folder) / "version.py"
        if own.is_file() and (word := _CUDA.search(own.read_text())):
            return int(word[1])
    return None


def _gpu(index: int, gpu: gpus.Gpu, share: float) -> Finding:
    total, free = gpu.total_bytes / GIB, gpu.free_bytes / GIB
    what = f"GPU {index}: {gpu.name}, {free:.0f} of {total:.0f} GiB free"
    if gpu.divided:
        advice = "Name the parts to use in CUDA_VISIBLE_DEVICES (MIG-…; `nvidia-smi -L` lists them)."
        return Finding(Mark.NOTE, f"GPU {index}: {gpu.name}, divided into parts", advice)
    if free < share * total:
        advice = f"vLLM wants {share:.0%} of it: see `nvidia-smi` who has the rest, or say --gpu-memory-utilization."
        return Finding(Mark.BAD, what, advice)
    if not gpu.for_many:
        return Finding(Mark.NOTE, f"{what}, for one process", "--instances-per-gpu needs --compute-mode=DEFAULT.")
    return Finding(Mark.GOOD, what)


def _compiler() -> Finding:
    needs = "Triton, which vLLM's kernels come from, needs"
    if not (shutil.which("gcc") or shutil.which("clang") or os.environ.get("CC")):  # as Triton looks
        return Finding(Mark.BAD, "no C compiler", f"{needs} one: install gcc.")
    if not Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").exists():  # where Triton looks
        return Finding(Mark.BAD, "no headers of Python", f"{needs} Python.h: install python3-dev, of this version.")
    return Finding(Mark.GOOD, "a C compiler, and Python's headers")


def _what_vllm_needs() -> Finding:
    """Of packages, most of which are for some models alone."""
    if not _is_installed("vllm"):
        return Finding(Mark.NOTE, "vLLM does not say what packages it needs")
    missing = [name for name in _required_by_vllm() if not _is_installed(name)]
    if not missing:
        return Finding(Mark.GOOD, "all packages that vLLM names")
    shown = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
    advice = "Some models need them: install vLLM with all that it names."
    return Finding(Mark.NOTE, f"packages of vLLM's are missing: {shown}", advice)


def _sampler(arguments: ServeArguments) -> Finding:
    """The one of FlashInfer's kernels that every instance comes to need."""
    environment = child_environment(arguments, os.environ)
    why, wanted = flashinfer.why_not(environment), environment.get(flashinfer.SAMPLER)
    if why is None or wanted == "0":
        return Finding(Mark.GOOD, "FlashInfer's kernels" if why is None else f"vLLM's own kernels draw tokens: {why}")
    return Finding(Mark.BAD, why, f"Take {flashinfer.SAMPLER} out of the environment, or say {flashinfer.SAMPLER}=0.")


def _required_by_vllm() -> list[str]:
    """Names of the distributions that it names for this machine, without extras."""
    from packaging.requirements import Requirement  # vLLM itself needs it

    wanted = [Requirement(line) for line in importlib.metadata.requires("vllm") or []]
    return sorted({one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})})


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
