"""An instance's process: builds the engine core, runs its loop, ends cleanly on SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core import EngineShutdownState
from vllm.v1.engine.utils import SignalCallback

from llumnix.engine.port import InstanceSpec
from llumnix.engine.vllm.core import LlumnixEngineCore

FAULT = "LLUMNIX_FAULT"
"""For tests only, an environment variable. `zero-arrivals`: KV that a migration copied is overwritten with zeros, so
that streams that move must go wrong; without it, a test of their equality proves nothing."""


def serve_instance(vllm_config: Any, spec: InstanceSpec, *, log_stats: bool) -> None:
    """Blocks until SIGTERM. Requests that still run then are aborted: to save them, drain first."""
    signal.signal(signal.SIGTERM, _exit_now)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the launcher decides
    threading.excepthook = _die_with_the_thread
    core = LlumnixEngineCore(spec, vllm_config, log_stats=log_stats)
    # A signal handler must not touch the queue, whose lock the main thread may hold: vLLM's callback thread does.
    wake = SignalCallback(lambda: core.input_queue.put_nowait((EngineCoreRequestType.WAKEUP, None)))

    def stop(*_: Any) -> None:
        core.shutdown_state = EngineShutdownState.REQUESTED
        wake.trigger()

    try:
        core.open_for_business(os.getpid())
        core.inject_fault(os.environ.get(FAULT, ""))
        signal.signal(signal.SIGTERM, stop)
        core.run_busy_loop()
    except SystemExit:
        pass
    finally:
        threading.excepthook = threading.__excepthook__
        wake.stop()
        core.close()


def _die_with_the_thread(death: threading.ExceptHookArgs) -> None:
    """An instance that lives on without its mailbox or its transport helps nobody: it would be deaf, not dead."""
    threading.__excepthook__(death)
    if death.exc_type is not SystemExit:
        sys.stderr.flush()
        os._exit(1)


def _exit_now(*_: Any) -> None:
    """While the model loads there is nothing to save."""
    os._exit(0)
