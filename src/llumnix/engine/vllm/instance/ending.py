"""The end of an engine's process: its memory goes with it, so nobody looks through it for what could be freed.

vLLM does, because an engine may end in a process that goes on (`cleanup_dist_env_and_memory`,
vllm/distributed/parallel_state.py, and `Worker.shutdown`, vllm/v1/worker/gpu_worker.py, which show the collector all
that was hidden from it), and Python does when a process ends. Each time that is some 700,000 objects, whose memory is
copied where the process was forked. Workers take 5 s and more for it, until vLLM waits no longer.
"""

from __future__ import annotations

import atexit
import gc


def end_without_collecting() -> None:
    """In a process that does nothing any more but end. What is let go of is freed as always, if it is in no cycle; what
    is still held at the end has no last words."""
    gc.freeze()
    gc.unfreeze = gc.freeze
    atexit.register(gc.freeze)
