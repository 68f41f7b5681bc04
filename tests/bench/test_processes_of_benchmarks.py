"""What a benchmark starts ends with it, and a benchmark waits for nobody who has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
from frame import server as servers
from frame.child import child
from frame.verdict import ROOT

from llumnix.cluster import environment, flashinfer
from llumnix.flags import parse_serve

SLEEPS = "import time; time.sleep(600)"
BENCHMARK = f"""
import os, sys, time
from pathlib import Path
from frame.server import ServerProcess
server = ServerProcess([sys.executable, "-c", {SLEEPS!r}], [], Path(sys.argv[1]), os.environ)
try:
    print(server.process.pid, flush=True)
    time.sleep(600)
finally:
    server.kill()
"""


def test_a_benchmark_that_is_terminated_takes_its_server_with_it(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT / "src")])
    command = [sys.executable, "-c", BENCHMARK, str(tmp_path / "console")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as benchmark:
        assert benchmark.stdout is not None
        server = psutil.Process(int(benchmark.stdout.readline()))
        try:
            benchmark.terminate()
            assert benchmark.wait(30) == 1
            assert not server.is_running()
        finally:
            benchmark.kill()
            if server.is_running():
                server.kill()


def speaks(pipe: Connection, word: str) -> None:
    pipe.send(word)
    assert pipe.recv() is None


def ends(pipe: Connection) -> None:
    sys.exit(3)


def test_a_process_says_that_it_is_ready_and_is_told_when_it_is_enough() -> None:
    with child(speaks, "ready") as (said, _, process):
        assert said == "ready"
    assert process.exitcode == 0


def test_a_process_that_ends_at_its_start_is_not_waited_for() -> None:
    with pytest.raises(SystemExit, match="ended at its start, with 3"), child(ends):
        pass


def test_servers_that_are_compared_draw_tokens_by_the_same_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where FlashInfer's cannot be had, vLLM alone would end with the first request that needs them."""
    for module in (servers, environment):
        monkeypatch.setattr(module, "runs_on_cpu", lambda: False)
    monkeypatch.setattr(flashinfer, "why_not", lambda _: "FlashInfer is not installed")
    monkeypatch.delenv(flashinfer.SAMPLER, raising=False)
    ours = environment.child_environment(parse_serve([]), os.environ)
    assert servers._like_ours()[flashinfer.SAMPLER] == ours[flashinfer.SAMPLER] == "0"
