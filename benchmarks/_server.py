"""Servers that the benchmarks start and stop: Llumnix, and vLLM's own with the same engine flags."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import psutil

from llumnix import tiny_model

READY_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 60.0
_POLL_S = 0.05
_PACED = Path(__file__).with_name("_paced")


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    pid: int
    ready_s: float
    """From the start of the process until `GET /health` said 200."""

    def processes(self) -> list[psutil.Process]:
        """The server's process and all its descendants."""
        root = psutil.Process(self.pid)
        return [root, *root.children(recursive=True)]

    def cpu_s(self) -> float:
        """Processor time of all processes so far, user and system."""
        total = 0.0
        for process in self.processes():
            try:
                times = process.cpu_times()
            except psutil.Error:  # it ended meanwhile
                continue
            total += times.user + times.system
        return total


def tiny_engine_flags(max_model_len: int = 8192, kv_mib: int = 64, *, compiled: bool = False) -> list[str]:
    """Flags of `vllm serve`, model first, that suit the tiny model on a CPU; for both servers alike."""
    return [
        str(tiny_model.ensure()),
        *("--served-model-name", "tiny", "--dtype", "float32", "--block-size", "32"),
        *("--max-model-len", str(max_model_len), "--kv-cache-memory-bytes", str(kv_mib << 20)),
        *([] if compiled else ["--enforce-eager"]),
    ]


def add_compile_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--compile", action="store_true", help="With vLLM's compilation, as real models have it.")


@contextmanager
def empty_compile_cache() -> Iterator[None]:
    """Servers that are started meanwhile find nothing compiled from earlier."""
    with tempfile.TemporaryDirectory(prefix="compiled-") as folder, mock.patch.dict(os.environ, VLLM_CACHE_ROOT=folder):
        yield


def add_pace_flags(parser: argparse.ArgumentParser) -> None:
    """For what `paced_engine_flags` is to be told."""
    parser.add_argument("--step-ms", type=float, default=20.0, help="Of a step without tokens. Default: 20.")
    parser.add_argument("--token-ms", type=float, default=0.2, help="More for each token. Default: 0.2.")


@contextmanager
def paced_engine_flags(step_ms: float, token_ms: float, max_model_len: int, kv_mib: int) -> Iterator[list[str]]:
    """As `tiny_engine_flags`, of a model that takes its time as if every instance had a device (_paced/).

    Servers that are started meanwhile know that model: vLLM finds the plugin through PYTHONPATH.
    """
    model, *flags = tiny_engine_flags(max_model_len, kv_mib)
    path = os.pathsep.join(filter(None, (str(_PACED), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory(prefix="paced-") as folder, mock.patch.dict(os.environ, PYTHONPATH=path):
        shutil.copytree(model, folder, dirs_exist_ok=True)
        config_json = Path(folder) / "config.json"
        config = json.loads(config_json.read_text())
        config |= {"architectures": ["PacedForCausalLM"], "paced_step_ms": step_ms, "paced_token_ms": token_ms}
        config_json.write_text(json.dumps(config))
        yield [folder, *flags]


@contextmanager
def llumnix_server(engine_flags: Sequence[str], *flags: str) -> Iterator[Server]:
    """`llumnix serve` with these flags; stopped at the end. Raises SystemExit with its last words if it fails."""
    with _running(["-m", "llumnix", "serve", *engine_flags, "--verbose", *flags]) as server:
        yield server


@contextmanager
def vllm_server(engine_flags: Sequence[str], *flags: str) -> Iterator[Server]:
    """`vllm serve` with these flags, with threads as Llumnix sets them; stopped at the end.

    Raises SystemExit with its last words if it fails.
    """
    launcher = str(Path(__file__).with_name("_vllm_serve.py"))
    with _running([launcher, *engine_flags, *flags]) as server:
        yield server


def _environment() -> dict[str, str]:
    """What `llumnix serve` sets for its own processes on CPUs, so that both run under the same conditions."""
    return {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        **os.environ,
    }


@contextmanager
def _running(command: Sequence[str]) -> Iterator[Server]:
    port = _free_port()
    command = [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the server goes with its benchmark
    with tempfile.TemporaryFile("w+") as log:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_environment(), process_group=0)
        try:
            url = f"http://127.0.0.1:{port}"
            if not _wait_ready(process, url):
                log.seek(0)
                raise SystemExit("\n".join([f"{' '.join(command)} did not get ready:", *log.read().split("\n")[-30:]]))
            yield Server(url, process.pid, time.monotonic() - began)
        finally:
            _stop(process)


def _wait_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return True
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(_POLL_S)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
