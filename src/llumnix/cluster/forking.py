"""What a process does to itself around a fork: the one that forks, and the one that was forked."""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import psutil

from llumnix.engine.shared_memory import note_what_others_share


def children() -> set[int]:
    """Of this process; adopted ones, and those that ended and were not waited for, included."""
    return {child.pid for child in psutil.Process().children()}


def collect_later() -> None:
    """Until `settle_memory`: an engine's import makes a million objects, nearly all to stay, and looking through them
    again and again is a fifth of its time."""
    gc.disable()


def settle_memory() -> None:
    """Moves all objects so far out of the collector's sight: a collection in a child would touch, and so copy, them."""
    gc.collect()
    gc.freeze()
    gc.enable()


def warn_about_threads() -> None:
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    if len(threads) > 1:
        note(
            f"warning: forking with {len(threads)} threads ({', '.join(threads)}); "
            "a lock held by one of them hangs the child"
        )


def keep_temporary_files_in(folder: Path) -> None:
    """Of this process and its children. Engines leave sockets, rendezvous files and shared memory behind when they are
    killed."""
    folder.mkdir(mode=0o700)
    note_what_others_share(folder)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None  # asks the environment anew


def name_process(child: str) -> None:
    """For logs in JSON, and for ps and top; the engine's package brings setproctitle along, a fake one need not."""
    multiprocessing.current_process().name = child
    try:
        setproctitle = importlib.import_module("setproctitle")
    except ImportError:
        return
    setproctitle.setproctitle(f"llumnix {child}")


def flush() -> None:
    """What was printed so far, unless the disk is full."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()


def note(text: str) -> None:
    """In the log, unless the disk is full."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
