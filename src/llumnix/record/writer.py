"""Writes one front end's files of a recorded run, in a thread of its own (see form.py)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import assert_never

import msgspec

from llumnix.appending import append_whole
from llumnix.background import BackgroundWriter
from llumnix.errors import UsageError
from llumnix.record.form import (
    INSTANCES,
    MOVES,
    REQUESTS,
    STEPS,
    About,
    RecordedMove,
    RecordedRequest,
    RecordedStep,
    about_file,
    part_file,
    parts_of,
)
from llumnix.record.read import about_in
from llumnix.record.units import hidden_id, unit_hashes
from llumnix.report.records import MOVED, InstanceRecord, RecordT, append_rows
from llumnix.whole_file import write_whole

log = logging.getLogger(__name__)

MOST_WAITING = 1000
"""Rows that are not written yet: with each goes a prompt."""

LONGEST_PART_S = 3600.0
_PARTS = 16
"""A file may have so much of the front end's share; all that are closed, three quarters of it."""


@dataclass(frozen=True, slots=True)
class EndedRow:
    """A sequence that ended. Its id is not hidden yet, and its prompt not hashed."""

    record: RecordedRequest
    token_ids: Sequence[int]
    """Of its prompt; none if nobody can share a part of it."""
    salt: int


@dataclass(frozen=True, slots=True)
class Tried:
    """An attempt to move one. Its ids are not hidden yet, and its outcome may name what a client asked for."""

    record: RecordedMove


@dataclass(frozen=True, slots=True)
class Looked:
    """All instances at one moment, and those whose steps cost something else than before."""

    instances: list[InstanceRecord]
    steps: list[RecordedStep]


RunRow = EndedRow | Tried | Looked


class _Part:
    """The file of one kind that is written to now."""

    def __init__(self, folder: Path, kind: str, front_end: int) -> None:
        earlier = parts_of(folder, kind, front_end)
        number = 1 + int(earlier[-1].stem.rpartition("-")[2]) if earlier else 0
        self.path = part_file(folder, kind, front_end, number)
        self._began_s = monotonic()

    def is_full(self, most_bytes: int) -> bool:
        if not self.path.exists():
            return False
        return self.path.stat().st_size > most_bytes or monotonic() - self._began_s > LONGEST_PART_S


class RunWriter:
    """`put` returns at once. What cannot be written is counted in the front end's `about` file."""

    def __init__(self, folder: Path, about: About, unit_tokens: int, key: bytes, most_bytes: int) -> None:
        """`unit_tokens`: by which prompts are told apart; 0: they are not. `most_bytes`: of all its files."""
        self.folder = folder
        self._about = about
        self._unit_tokens = unit_tokens
        self._key = key
        self._most_bytes = most_bytes
        self._removed = 0
        self._parts: dict[str, _Part] = {}
        self._told: About | None = None
        self._failing = False
        self._encoder = msgspec.json.Encoder()
        self._writer: BackgroundWriter[RunRow] = BackgroundWriter("recorded run", self._write, MOST_WAITING)
        self.put = self._writer.put

    @property
    def dropped(self) -> int:
        return self._writer.dropped

    def close(self) -> None:
        """Waits until all is written, or for two seconds."""
        self._writer.close()

    def _write(self, rows: list[RunRow]) -> None:
        try:
            self._write_all(rows)
            self._failing = False
        except OSError as error:
            if not self._failing:  # once, and not for every row
                log.warning("cannot write to the recorded run %s: %s", self.folder, error.strerror or error)
            self._failing = True
            raise

    def _write_all(self, rows: list[RunRow]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        requests: list[RecordedRequest] = []
        moves: list[RecordedMove] = []
        instances: list[InstanceRecord] = []
        steps: list[RecordedStep] = []
        for row in rows:
            match row:
                case EndedRow():
                    requests.append(self._hidden(row))
                case Tried():
                    moves.append(self._hidden_move(row.record))
                case Looked():
                    instances += row.instances
                    steps += row.steps
                case _:
                    assert_never(row)
        self._append_lines(requests)
        self._append(MOVES, RecordedMove, moves)
        self._append(INSTANCES, InstanceRecord, instances)
        self._append(STEPS, RecordedStep, steps)
        self._tell_about()

    def _hidden(self, ended: EndedRow) -> RecordedRequest:
        hashes: tuple[int, ...] = ()
        if self._unit_tokens:
            hashes = unit_hashes(ended.token_ids, self._unit_tokens, ended.salt, self._key)
        return msgspec.structs.replace(
            ended.record,
            id=hidden_id(ended.record.id, self._key),
            block_hashes=hashes,
            block_tokens=self._unit_tokens or ended.record.block_tokens,
        )

    def _hidden_move(self, move: RecordedMove) -> RecordedMove:
        """Orders are named after requests, too, and sentences of instances name adapters: of these the kind is kept."""
        return msgspec.structs.replace(
            move,
            request_id=hidden_id(move.request_id, self._key),
            move_id=hidden_id(move.move_id, self._key) if move.move_id else "",
            outcome=MOVED if move.outcome == MOVED else f"stayed: {move.stayed_by or 'not known'}",
        )

    def _append_lines(self, requests: Sequence[RecordedRequest]) -> None:
        if requests:
            lines = b"".join(self._encoder.encode(request) + b"\n" for request in requests)
            append_whole(self._part(REQUESTS), lines)

    def _append(self, kind: str, of: type[RecordT], rows: Sequence[RecordT]) -> None:
        if rows:
            append_rows(self._part(kind), of, rows)

    def _part(self, kind: str) -> Path:
        """What rows of this kind are written to."""
        part = self._parts.get(kind)
        if part is None or part.is_full(self._most_bytes // _PARTS):
            part = self._parts[kind] = _Part(self.folder, kind, self._about.front_end)
            self._make_room()
        return part.path

    def _make_room(self) -> None:
        """The oldest go, but those that are written to."""
        open_now = {part.path for part in self._parts.values()}
        own = (path for kind in (REQUESTS, MOVES, INSTANCES, STEPS) for path in self._own(kind))
        closed = sorted((path.stat().st_mtime_ns, path) for path in own if path not in open_now)
        total = sum(path.stat().st_size for _, path in closed)
        for _, path in closed:
            if total <= self._most_bytes * 3 // 4:
                break
            total -= path.stat().st_size
            path.unlink()
            self._removed += 1

    def _own(self, kind: str) -> Iterable[Path]:
        return parts_of(self.folder, kind, self._about.front_end)

    def _tell_about(self) -> None:
        file = about_file(self.folder, self._about.front_end)
        if self._told is None:
            self._count_on(file)
        before, removed = self._about, self._about.removed + self._removed
        about = msgspec.structs.replace(before, dropped=before.dropped + self.dropped, removed=removed)
        if about != self._told or not file.exists():  # somebody may have taken the folder away
            write_whole(file, msgspec.json.format(msgspec.json.encode(about), indent=2) + b"\n")
            self._told = about

    def _count_on(self, file: Path) -> None:
        """From where this front end was before it was restarted."""
        with contextlib.suppress(UsageError):
            before = about_in(file)
            self._about = msgspec.structs.replace(self._about, dropped=before.dropped, removed=before.removed)
