"""A worker in a process of its own: how it begins, and that it ends with its instance, however early that is."""

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


BEGINNING = """
import gc, multiprocessing, os

def worker():
    from llumnix.cluster import forking
    forking.collect_later()  # as `llumnix.cluster.nursery` does, which a worker that is spawned imports first
    import llumnix.engine.vllm.instance.worker
    print(gc.isenabled(), flush=True)

process = multiprocessing.get_context("fork").Process(target=worker)
process.start()
process.join()
"""


def test_a_worker_that_has_imported_the_engine_collects_again() -> None:
    said = subprocess.run([sys.executable, "-c", BEGINNING], capture_output=True, text=True, check=True, timeout=100)
    assert said.stdout == "True\n"
