"""Checks this machine: is it fit to serve, and if not, what is to be done."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from llumnix.cluster import preflight
from llumnix.cluster.environment import runs_on_cpu
from llumnix.engine import gpus
from llumnix.errors import UsageError
from llumnix.vllm_words import ADVICE, NEVER_RUN, SUPPORTED_WORDS, installed_version

_GIB = 1024**3
_MOSTLY_FREE = 0.92
_SHARED_MEMORY = Path("/dev/shm")
_AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")
_SHOWN = 6
_SAMPLER = "flashinfer-python"
_WITHOUT_SAMPLER = "Without FlashInfer, serve with VLLM_USE_FLASHINFER_SAMPLER=0: else no instance starts."


class Mark(StrEnum):
    GOOD = "ok"
    NOTE = "note"
    """Works, but the user may want to know."""
    BAD = "BAD"
    """Serving will fail."""


@dataclass(frozen=True, slots=True)
class Finding:
    mark: Mark
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.mark:>4}  {self.what}" + (f"\n      {self.advice}" if self.advice else "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="Model to be served; without it, the tiny one.")
    parser.add_argument("--instances", type=int, default=2, help="Instances to be served. Default: 2.")
    parser.add_argument("--port", default=str(preflight.DEFAULT_PORT), help="Port to be used. Default: 8000.")


def run(values: argparse.Namespace) -> int:
    """Prints the findings; 0 if serving will work, else 1."""
    if values.instances < 1:
        raise UsageError(f"--instances must be at least 1, not {values.instances}.")
    findings = examine(values.model, values.instances, preflight.port_number(values.port))
    for finding in findings:
        print(finding)
    bad = sum(finding.mark is Mark.BAD for finding in findings)
    print(f"\n{bad} of these would keep `llumnix serve` from working." if bad else "\nThis machine can serve.")
    return 1 if bad else 0


def examine(model: str | None, instances: int, port: int) -> list[Finding]:
    checks: list[Callable[[], Finding]] = [
        _python,
        _vllm,
        _torch,
        _ray,
        lambda: _cores(model, instances, os.environ),
        lambda: _sessions(_AUTOGROUP),
        lambda: _memory(model, instances),
        _shared_memory,
        lambda: _port(port),
        lambda: _model(model),
    ]
    findings = [check() for check in checks]
    if runs_on_cpu():
        return findings
    return [*findings, *_gpus(gpus.installed(), instances, os.environ), _compiler(), _what_vllm_needs()]


def _python() -> Finding:
    return Finding(Mark.GOOD, "Python " + ".".join(map(str, sys.version_info[:3])))


def _vllm() -> Finding:
    try:
        preflight.check_vllm()
    except UsageError as error:
        return Finding(Mark.BAD, f"vLLM {installed_version() or 'is missing'}", str(error))
    version = installed_version() or ""
    what = f"vLLM {version} ({'CPU' if runs_on_cpu() else 'GPU'} build); {SUPPORTED_WORDS} will do"
    if version.startswith(NEVER_RUN):
        return Finding(Mark.NOTE, what, "All that Llumnix relies on is there, but no test has run on this version.")
    return Finding(Mark.GOOD, what)


def _torch() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding(Mark.BAD, "PyTorch is missing", "It comes with vLLM; run `make env` in a checkout.")
    version = importlib.metadata.version("torch")
    if runs_on_cpu() and Path("/dev/nvidia0").exists():
        advice = f"This machine has a GPU; {ADVICE} to use it."
        return Finding(Mark.NOTE, f"PyTorch {version}, without the GPU", advice)
    return Finding(Mark.GOOD, f"PyTorch {version}")


def _gpus(there: gpus.GpuMachine | None, instances: int, environment: Mapping[str, str]) -> list[Finding]:
    if there is None:
        advice = "Install NVIDIA's driver; in a container, start it with the GPUs (Docker: --gpus all)."
        return [Finding(Mark.BAD, "no driver for a GPU answers", advice)]
    findings = [_driver(there)]
    try:
        devices = len(gpus.visible(environment, there) or [])
    except UsageError as error:
        return [*findings, Finding(Mark.BAD, "GPUs", str(error))]
    if devices < instances:
        advice = f"llumnix serve --instances {max(1, devices)}, or --instances-per-gpu to have several share one."
        findings.append(Finding(Mark.BAD, f"{devices} GPUs for {instances} instances", advice))
    return findings + [_gpu(index, gpu) for index, gpu in enumerate(there.gpus)]


def _driver(there: gpus.GpuMachine) -> Finding:
    what = f"driver {there.driver}, for CUDA up to {there.cuda[0]}.{there.cuda[1]}"
    version = importlib.metadata.version("torch") if _is_installed("torch") else ""
    built = re.search(r"\+cu(\d+)\d$", version)
    if built is not None and int(built[1]) > there.cuda[0]:
        advice = f"PyTorch {version} needs a driver for CUDA {built[1]}: update the driver."
        return Finding(Mark.BAD, what, advice)
    return Finding(Mark.GOOD, what)


def _gpu(index: int, gpu: gpus.Gpu) -> Finding:
    total, free = gpu.total_bytes / _GIB, gpu.free_bytes / _GIB
    what = f"GPU {index}: {gpu.name}, {free:.0f} of {total:.0f} GiB free"
    if not gpu.for_many:
        return Finding(Mark.NOTE, f"{what}, for one process", "--instances-per-gpu needs --compute-mode=DEFAULT.")
    if free < _MOSTLY_FREE * total:
        return Finding(Mark.NOTE, what, "Others use it: vLLM wants 92 % of it, or what --gpu-memory-utilization says.")
    return Finding(Mark.GOOD, what)


def _compiler() -> Finding:
    needs = "Triton, which vLLM's kernels come from, needs"
    if not (shutil.which("cc") or shutil.which("gcc") or os.environ.get("CC")):
        return Finding(Mark.BAD, "no C compiler", f"{needs} one: install gcc.")
    if not Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").exists():  # where Triton looks
        return Finding(Mark.BAD, "no headers of Python", f"{needs} Python.h: install python3-dev, of this version.")
    return Finding(Mark.GOOD, "a C compiler, and Python's headers")


def _what_vllm_needs() -> Finding:
    """Of packages. Most are for some models alone; vLLM looks for FlashInfer's sampler on every recent GPU."""
    if not _is_installed("vllm"):
        return Finding(Mark.NOTE, "vLLM does not say what packages it needs")
    missing = [name for name in _required_by_vllm() if not _is_installed(name)]
    if not missing:
        return Finding(Mark.GOOD, "all packages that vLLM names")
    shown = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
    advice = "Some models need them: install vLLM with all that it names."
    if _SAMPLER in missing and os.environ.get("VLLM_USE_FLASHINFER_SAMPLER") != "0":
        return Finding(Mark.BAD, f"packages of vLLM's are missing: {shown}", f"{advice} {_WITHOUT_SAMPLER}")
    return Finding(Mark.NOTE, f"packages of vLLM's are missing: {shown}", advice)


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


def _ray() -> Finding:
    if importlib.util.find_spec("ray") is None:
        return Finding(Mark.NOTE, "Ray is not installed", "It is only needed for more than one machine.")
    return Finding(Mark.GOOD, f"Ray {importlib.metadata.version('ray')}")


def _cores(model: str | None, instances: int, environment: Mapping[str, str]) -> Finding:
    cores = len(os.sched_getaffinity(0))
    if runs_on_cpu() and cores < instances:
        return Finding(Mark.NOTE, f"{cores} cores for {instances} instances", "They will take turns; try fewer.")
    share = cores // instances
    if runs_on_cpu() and model is not None and share > 1 and "OMP_NUM_THREADS" not in environment:
        what = f"{cores} cores, and each instance computes on one"
        return Finding(Mark.NOTE, what, f"OMP_NUM_THREADS={share} has it compute on {share}.")
    return Finding(Mark.GOOD, f"{cores} cores")


def _sessions(autogroup: Path) -> Finding:
    """Linux may share the cores among sessions (terminals, services) before it shares them among processes. On two full
    cores a client in one session was seen to wait four seconds for a server in another."""
    fair = not autogroup.exists() or autogroup.read_text().strip() == "0"
    if fair or not runs_on_cpu():
        return Finding(Mark.GOOD, "cores are shared among processes")
    advice = "Start clients on this machine from the server's shell, or set kernel.sched_autogroup_enabled=0."
    return Finding(Mark.NOTE, "cores are shared among sessions first", advice)


def _memory(model: str | None, instances: int) -> Finding:
    available = psutil.virtual_memory().available
    what = f"{available / _GIB:.1f} GiB of memory free"
    needed = preflight.needed_bytes(instances, model)
    if runs_on_cpu() and needed > available:
        return Finding(Mark.BAD, what, f"{instances} instances need at least {needed / _GIB:.1f} GiB; use fewer.")
    return Finding(Mark.GOOD, what)


def _shared_memory() -> Finding:
    if not os.access(_SHARED_MEMORY, os.W_OK):
        return Finding(Mark.BAD, "/dev/shm cannot be written", "Mount a tmpfs there (Docker: --shm-size=1g).")
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if free < _GIB // 4:
        advice = "Engines with several workers need more (Docker: --shm-size=1g)."
        return Finding(Mark.NOTE, f"only {free / _GIB:.2f} GiB free in /dev/shm", advice)
    return Finding(Mark.GOOD, f"{free / _GIB:.1f} GiB free in /dev/shm")


def _port(port: int) -> Finding:
    reason = preflight.why_taken("127.0.0.1", port)
    if reason is not None:
        return Finding(Mark.BAD, f"port {port}: {reason}", "Stop what listens there, or choose another with --port.")
    return Finding(Mark.GOOD, f"port {port} is free")


def _model(model: str | None) -> Finding:
    if model is None:
        return Finding(Mark.GOOD, "model: the tiny one, made on the spot")
    try:
        preflight.check_model(model)
    except UsageError as error:
        return Finding(Mark.BAD, f"model {model}", str(error))
    if not os.path.exists(model):
        return Finding(Mark.NOTE, f"model {model} is not on this machine", "It will be fetched from the model hub.")
    return Finding(Mark.GOOD, f"model {model}")
