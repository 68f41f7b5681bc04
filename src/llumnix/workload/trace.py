"""Traces: who asked when, and for how much. Reads three forms, writes one.

| form | rows | recognised by |
|---|---|---|
| Azure LLM inference trace | CSV `TIMESTAMP,ContextTokens,GeneratedTokens`, clock times | its header |
| Mooncake | JSON lines `timestamp` (ms), `input_length`, `output_length`, `hash_ids` | `.jsonl`, `input_length` |
| ours | CSV or JSON lines `id,arrival_s,prompt_tokens,output_tokens,priority,block_hashes` | `arrival_s` |

Of our own form `arrival_s`, `prompt_tokens` and `output_tokens` are needed and other columns are ignored, so the
`requests.csv` of a run is a trace, too. `.gz` and `.xz` files are read as they are. Times are shifted so that
the first request arrives at 0; rows may be in any order of time.
"""

from __future__ import annotations

import csv
import gzip
import io
import lzma
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import msgspec

from llumnix.errors import UsageError
from llumnix.types import NORMAL, Priority

MOONCAKE_BLOCK_TOKENS = 512
"""Prompt tokens behind one entry of `block_hashes` in a Mooncake trace."""

MOST_TOKENS = 2**31
"""A longer prompt or output is a broken row."""


class WorkloadRequest(msgspec.Struct, frozen=True):
    """One request of a workload. Times are seconds from the start of the run."""

    id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    priority: Priority = NORMAL
    block_hashes: tuple[int, ...] = ()
    """Content of the prompt, one id per block: two prompts share a prefix as far as these agree."""


Row: TypeAlias = Mapping[str, Any]


def load_trace(path: Path) -> list[WorkloadRequest]:
    """The requests of a trace file by time of arrival, ids as in the file or `r000000` … by position.

    Raises UsageError, with the file's name and the line, if the file cannot be read or a row is broken.
    """
    try:
        with _open_text(path) as lines:
            rows = _json_rows(path, lines) if ".jsonl" in path.suffixes else _csv_rows(path, lines)
            timed = [_request(path, line, row, index) for index, (line, row) in enumerate(rows)]
    except OSError as error:
        raise UsageError(f"Cannot read the trace {path}: {error.strerror or error}.") from error
    except (UnicodeDecodeError, EOFError, lzma.LZMAError, csv.Error) as error:
        raise UsageError(f"Cannot read the trace {path}: {error}.") from error
    if not timed:
        raise UsageError(f"The trace {path} has no requests.")
    start_ns = min(at_ns for at_ns, _ in timed)
    timed.sort(key=lambda item: item[0])
    return [msgspec.structs.replace(r, arrival_s=(at_ns - start_ns) / _NS_PER_S) for at_ns, r in timed]


def save_trace(path: Path, requests: Iterable[WorkloadRequest]) -> None:
    """Writes our own form: JSON lines if `path` ends in .jsonl, else CSV. `load_trace` gives the same back."""
    if path.suffix == ".jsonl":
        path.write_bytes(b"".join(msgspec.json.encode(request) + b"\n" for request in requests))
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(WorkloadRequest.__struct_fields__)
        for r in requests:
            hashes = " ".join(map(str, r.block_hashes))
            writer.writerow((r.id, repr(r.arrival_s), r.prompt_tokens, r.output_tokens, r.priority, hashes))


def _open_text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    if path.suffix == ".xz":
        return io.TextIOWrapper(lzma.open(path), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _csv_rows(path: Path, lines: TextIO) -> Iterator[tuple[int, Row]]:
    reader = csv.DictReader(lines)
    header = reader.fieldnames or []
    if not any({*form.needed} <= {*header} for form in _FORMS):
        raise UsageError(
            f"{path}:1: not a trace: the header must have TIMESTAMP,ContextTokens,GeneratedTokens (Azure) "
            "or arrival_s,prompt_tokens,output_tokens."
        )
    for row in reader:
        if None in row or None in row.values():
            raise UsageError(f"{path}:{reader.line_num}: this row does not have {len(header)} fields.")
        yield reader.line_num, row


def _json_rows(path: Path, lines: TextIO) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise UsageError(f"{path}:{number}: not a JSON object: {error}.") from error
        if not isinstance(row, dict):
            raise UsageError(f"{path}:{number}: not a JSON object.")
        yield number, row


class _Form(msgspec.Struct, frozen=True):
    """How a row of one kind of trace reads: which fields, and what turns its time into nanoseconds."""

    time: str
    prompt: str
    output: str
    nanoseconds: Callable[[Any], int]
    hashes: str = "block_hashes"

    @property
    def needed(self) -> tuple[str, str, str]:
        return self.time, self.prompt, self.output


_NS_PER_S = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _clock_ns(text: Any) -> int:
    # fromisoformat drops the last of Azure's 7 digits after the point; whole microseconds are fine enough.
    moment = datetime.fromisoformat(text)
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return since // timedelta(microseconds=1) * 1000


_FORMS = (
    _Form("TIMESTAMP", "ContextTokens", "GeneratedTokens", _clock_ns),
    _Form("timestamp", "input_length", "output_length", lambda ms: round(float(ms) * 1_000_000), "hash_ids"),
    _Form("arrival_s", "prompt_tokens", "output_tokens", lambda s: round(float(s) * _NS_PER_S)),
)


def _request(path: Path, line: int, row: Row, index: int) -> tuple[int, WorkloadRequest]:
    form = next((form for form in _FORMS if all(name in row for name in form.needed)), None)
    if form is None:
        raise UsageError(f"{path}:{line}: this row lacks one of arrival_s, prompt_tokens, output_tokens.")

    def field(name: str, read: Callable[[Any], Any], what: str) -> Any:
        try:
            return read(row[name])
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"{path}:{line}: {name} is {row[name]!r}, not {what}.") from error

    at_ns = field(form.time, form.nanoseconds, "a time")
    return at_ns, WorkloadRequest(
        id=str(row.get("id") or request_id(index)),
        arrival_s=at_ns / _NS_PER_S,
        prompt_tokens=field(form.prompt, _positive, "a number of tokens"),
        output_tokens=field(form.output, _positive, "a number of tokens"),
        priority=field("priority", lambda v: Priority(int(v)), "a whole number") if row.get("priority") else NORMAL,
        block_hashes=field(form.hashes, _hashes, "a list of whole numbers of at least 0")
        if row.get(form.hashes)
        else (),
    )


def request_id(index: int) -> str:
    """The id of the request at `index`: ids in order of text are ids in order of arrival."""
    return f"r{index:06d}"


def _positive(value: Any) -> int:
    number = int(value)
    if not 1 <= number <= MOST_TOKENS or number != float(value):
        raise ValueError
    return number


def _hashes(value: Any) -> tuple[int, ...]:
    hashes = tuple(int(item) for item in (value.split() if isinstance(value, str) else value))
    if any(item < 0 for item in hashes):
        raise ValueError
    return hashes
