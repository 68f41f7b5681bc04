"""Checks this machine: is it fit to serve so, and if not, what is to be done."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from llumnix.cluster import preflight
from llumnix.cluster.devices import SHARED_MEMORY, WORKERS_SHARE_BYTES, needed_bytes
from llumnix.cluster.environment import runs_on_cpu
from llumnix.cluster.preflight_paths import check_model
from llumnix.errors import UsageError
from llumnix.findings import GIB, Finding, Mark
from llumnix.flags import ServeArguments
from llumnix.gpu_findings import examine_gpus
from llumnix.vllm_words import ADVICE, NEVER_RUN, SUPPORTED_WORDS, installed_version

_AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")


def run(arguments: ServeArguments) -> int:
    """Prints the findings; 0 if serving will work, else 1."""
    findings = examine(arguments)
    for finding in findings:
        print(finding)
    bad = sum(finding.mark is Mark.BAD for finding in findings)
    print(f"\n{bad} of these would keep `llumnix serve` from working." if bad else "\nThis machine can serve.")
    return 1 if bad else 0


def examine(arguments: ServeArguments) -> list[Finding]:
    model, instances = arguments.model, arguments.cluster.instances
    checks: list[Callable[[], Finding]] = [
        _python,
        _vllm,
        _torch,
        _ray,
        lambda: _cores(model, instances, os.environ),
        lambda: _sessions(_AUTOGROUP),
        lambda: _memory(model, instances),
        _shared_memory,
        lambda: _port(arguments),
        lambda: _model(model),
    ]
    findings = [check() for check in checks]
    if not runs_on_cpu():
        findings += examine_gpus(arguments)
    if all(finding.mark is not Mark.BAD for finding in findings):
        findings += _all_else(arguments)
    return findings


def _all_else(arguments: ServeArguments) -> list[Finding]:
    """What `llumnix serve` itself would say."""
    try:
        preflight.check(arguments)
    except UsageError as error:
        return [Finding(Mark.BAD, "llumnix serve would not start", str(error))]
    return []


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
    what = f"{available / GIB:.1f} GiB of memory free"
    needed = needed_bytes(instances, model)
    if runs_on_cpu() and needed > available:
        return Finding(Mark.BAD, what, f"{instances} instances need at least {needed / GIB:.1f} GiB; use fewer.")
    return Finding(Mark.GOOD, what)


def _shared_memory() -> Finding:
    if not os.access(SHARED_MEMORY, os.W_OK):
        return Finding(Mark.BAD, "/dev/shm cannot be written", "Mount a tmpfs there (Docker: --shm-size=1g).")
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < WORKERS_SHARE_BYTES:
        advice = "Engines with several workers need more (Docker: --shm-size=1g)."
        return Finding(Mark.NOTE, f"only {free / GIB:.2f} GiB free in /dev/shm", advice)
    return Finding(Mark.GOOD, f"{free / GIB:.1f} GiB free in /dev/shm")


def _port(arguments: ServeArguments) -> Finding:
    port = preflight.port_number(arguments.engine_flag("--port") or str(preflight.DEFAULT_PORT))
    reason = preflight.why_taken(arguments.engine_flag("--host") or "127.0.0.1", port)
    if reason is not None:
        return Finding(Mark.BAD, f"port {port}: {reason}", "Stop what listens there, or choose another with --port.")
    return Finding(Mark.GOOD, f"port {port} is free")


def _model(model: str | None) -> Finding:
    if model is None:
        return Finding(Mark.GOOD, "model: the tiny one, made on the spot")
    try:
        check_model(model)
    except UsageError as error:
        return Finding(Mark.BAD, f"model {model}", str(error))
    if not os.path.exists(model):
        return Finding(Mark.NOTE, f"model {model} is not on this machine", "It will be fetched from the model hub.")
    return Finding(Mark.GOOD, f"model {model}")
