"""A part of a benchmark in a process of its own, which says something when it is ready and ends with a word."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

_READY_S = 60.0
_END_S = 10.0


@contextmanager
def child(work: Callable[..., None], *arguments: Any) -> Iterator[tuple[Any, Connection, BaseProcess]]:
    """`work(pipe, *arguments)`: the first that it said, our end of the pipe, and its process. It is told None at the
    end. Raises SystemExit if it ends before it has said anything, or does not say it in a minute."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()  # else nobody would notice that it has ended
    try:
        yield _first_word(ours, process), ours, process
    finally:
        with contextlib.suppress(OSError):  # it has ended already
            ours.send(None)
        process.join(_END_S)
        process.kill()


def _first_word(ours: Connection, process: BaseProcess) -> Any:
    if not ours.poll(_READY_S):
        raise SystemExit(f"a process of this benchmark has said nothing in {_READY_S:g} s")
    try:
        return ours.recv()
    except EOFError:
        process.join(_END_S)
        raise SystemExit(f"a process of this benchmark ended at its start, with {process.exitcode}") from None
