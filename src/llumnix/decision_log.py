"""The journal of a live process, and the file that it is written to: a line of JSON for each entry."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from llumnix.appending import append_whole, private
from llumnix.background import BackgroundWriter
from llumnix.errors import UsageError, refused_as
from llumnix.journal.entries import JournalEntry
from llumnix.journal.journal import Journal, by_time
from llumnix.json_lines import decode_lines, read_lines

STDOUT = "-"
_LARGEST = 64 << 20  # bytes of one file; one older file of that size is kept beside it
_MOST_WAITING = 20_000  # entries that are not written yet


def begin_journal(by: str, log: str) -> tuple[Journal, Callable[[], None]]:
    """Of entries with times of this process's monotonic clock, written to `log` (`ClusterConfig.decision_log`); and
    what is to be called at the process's end. Their numbers begin with the microseconds since 1970: a process that died
    and was replaced cannot have come as far."""
    journal = Journal(by, time.time_ns() // 1000, _since_1970_s(), clock_s=_since_1970_s)
    if not log:
        return journal, lambda: None
    written = DecisionLog(None if log == STDOUT else Path(f"{log}.{by}"))
    journal.listener = written.write
    return journal, written.close


def _since_1970_s() -> float:
    """When this process's monotonic clock was at zero."""
    return time.time() - time.monotonic()


class DecisionLog:
    """Written in a thread of its own. `path` None: to stdout."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._encoder = msgspec.json.Encoder()
        self._writer: BackgroundWriter[JournalEntry] = BackgroundWriter("decision log", self._append, _MOST_WAITING)
        self.write = self._writer.put
        self.close = self._writer.close

    def _append(self, entries: list[JournalEntry]) -> None:
        lines = b"".join(self._encoder.encode(entry) + b"\n" for entry in entries)
        if self._path is None:
            sys.stdout.buffer.write(lines)
            sys.stdout.flush()
            return
        if append_whole(self._path, lines, private) > _LARGEST:
            os.replace(self._path, f"{self._path}.1")


@contextlib.contextmanager
def written_at_once(path: Path) -> Iterator[Callable[[JournalEntry], None]]:
    """What writes the decision log of a simulated run. Raises UsageError if it cannot be written."""
    encoder = msgspec.json.Encoder()
    with refused_as(f"Cannot write the decision log {path}"), path.open("wb") as file:

        def write(entry: JournalEntry) -> None:
            file.write(encoder.encode(entry) + b"\n")

        yield write


def read_log(path: Path) -> list[JournalEntry]:
    """All entries of a decision log by time: of `path`, or of all processes of a server, which wrote `path.NAME`.
    Raises UsageError for what is none."""
    files = [path] if os.path.exists(path) else sorted(path.parent.glob(f"{path.name}.*"), reverse=True)
    if not files:
        raise UsageError(f"There is no decision log {path}.")
    decoder, what = msgspec.json.Decoder(JournalEntry), "decision log"
    journals: dict[str, list[JournalEntry]] = {}
    for file in files:
        for entry in decode_lines(read_lines(file, what), decoder, file, what):
            journals.setdefault(entry.by, []).append(entry)
    return by_time(journals.values())
