"""A worker in a process of its own ends with its instance, however early that is."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

pytest.importorskip("vllm")

INSTANCE = """
import multiprocessing, os, time

def worker():
    import llumnix.engine.vllm.instance.worker  # as vLLM does before it makes one
    print(os.getpid(), flush=True)
    time.sleep(60)  # for the others, in vain

multiprocessing.get_context("fork").Process(target=worker).start()
time.sleep(60)
"""


def test_a_worker_that_is_not_ready_yet_ends_with_an_instance_that_is_killed() -> None:
    instance = subprocess.Popen([sys.executable, "-c", INSTANCE], stdout=subprocess.PIPE, text=True)
    assert instance.stdout is not None
    worker = psutil.Process(int(instance.stdout.readline()))
    try:
        instance.send_signal(signal.SIGKILL)
        instance.wait(10)
        psutil.wait_procs([worker], timeout=10)
        assert not worker.is_running()
    finally:
        if worker.is_running():
            worker.kill()
        instance.stdout.close()
