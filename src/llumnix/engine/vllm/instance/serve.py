"""An instance's process: builds the engine core, runs its loop, ends cleanly on SIGTERM."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core import EngineShutdownState
from vllm.v1.engine.utils import SignalCallback

from llumnix import linux
from llumnix.engine.port import END_NOW, InstanceSpec
from llumnix.engine.shared_memory import noted_meanwhile
from llumnix.engine.vllm.instance.core import LlumnixEngineCore
from llumnix.engine.vllm.instance.ending import end_without_collecting
from llumnix.engine.vllm.instance.faults import inject_fault


def serve_instance(vllm_config: Any, spec: InstanceSpec, *, log_stats: bool) -> None:
    """Blocks until it is told to end.

    SIGTERM, which comes from an operator, drains it: its requests move away, and then the launcher ends it. A second
    one does not wait for that: what it has is replayed elsewhere. At the launcher's word (`END_NOW`) what still runs
    is aborted.
    """
    signal.signal(signal.SIGTERM, _exit_now)
    signal.signal(END_NOW, _exit_now)
    threading.excepthook = linux.die_with_the_thread
    with contextlib.ExitStack() as starting:
        if vllm_config.parallel_config.distributed_executor_backend == "mp":
            starting.enter_context(noted_meanwhile())
        core = LlumnixEngineCore(spec, vllm_config, log_stats=log_stats)
        _serve(core, starting.close)


def _serve(core: LlumnixEngineCore, on_ready: Callable[[], None]) -> None:
    # A signal handler must not touch the queue, whose lock the main thread may hold: vLLM's callback thread does.
    wake = SignalCallback(lambda: core.input_queue.put_nowait((EngineCoreRequestType.WAKEUP, None)))
    drain = SignalCallback(core.ask_to_drain)

    def stop(*_: Any) -> None:
        core.shutdown_state = EngineShutdownState.REQUESTED
        wake.trigger()

    def asked_to_end(*_: Any) -> None:
        signal.signal(signal.SIGTERM, _exit_now)
        drain.trigger()

    try:
        core.open_for_business(os.getpid())
        on_ready()
        inject_fault(core.office.driver.incoming)
        signal.signal(END_NOW, stop)
        signal.signal(signal.SIGTERM, asked_to_end)
        core.run_busy_loop()
    except SystemExit:
        pass
    finally:
        threading.excepthook = threading.__excepthook__
        wake.stop()
        drain.stop()
        end_without_collecting()
        core.close()


def _exit_now(*_: Any) -> None:
    """While the model loads there is nothing to save; and later all that is needed to go on is at the front ends."""
    os._exit(0)
