"""Traces: who asked when, and for how much, in four forms.

| form | rows | recognised by |
|---|---|---|
| Azure LLM inference trace | CSV `TIMESTAMP,ContextTokens,GeneratedTokens`, clock times | its header |
| Mooncake | JSON lines `timestamp` (ms), `input_length`, `output_length`, `hash_ids` (512 tokens) | no `chat_id` |
| Qwen-Bailian | JSON lines `timestamp` (s), `input_length`, `output_length`, `hash_ids` (16 tokens) | `chat_id` |
| ours | CSV or JSON lines `id,arrival_s,prompt_tokens,output_tokens,priority,block_hashes,block_tokens` | `arrival_s` |

Ours may have `tenant` and `class`, too, for clusters with classes. Of it `arrival_s`, `prompt_tokens` and
`output_tokens` are needed and other columns are ignored, so the `requests.csv` of a run is a trace, too, and so is the
`requests-f0-000.jsonl` of a recorded one: of such files rows that made no token are left out, and counted. `.gz` and
`.xz` files are read as they are. Times are shifted so that the first request arrives at 0; rows may be in any order of
time. A file whose form, unit of time or size of blocks is not certain or not plausible is refused (`trace_forms.py`).
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import msgspec

from llumnix.errors import UsageError
from llumnix.types import NORMAL, Priority
from llumnix.workload.trace_forms import (
    MOONCAKE_BLOCK_TOKENS,
    NS_PER_S,
    OURS,
    Form,
    Judge,
    Row,
    form_of_csv,
    form_of_json,
)

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
    block_tokens: int = MOONCAKE_BLOCK_TOKENS
    """Prompt tokens behind one of `block_hashes`."""
    tenant: str = ""
    """Whose it is, for a cluster with classes; empty: nobody's in particular."""
    cls: str = msgspec.field(default="", name="class")
    """The one that it asks for; empty: its tenant's first."""


@dataclass(frozen=True, slots=True)
class Trace:
    requests: list[WorkloadRequest]
    """By time of arrival."""
    silent: int
    """Rows of requests that made no token, in a file of a run that was: there is nothing to ask for again."""


def load_trace(path: Path) -> Trace:
    """Ids are as in the file, or `r000000` … by position; where one comes again, its second is `ID#2`.

    Raises UsageError, with the file's name and the line, if the file cannot be read or a row is broken.
    """
    timed: list[tuple[int, WorkloadRequest]] = []
    judge: Judge | None = None
    names, silent = _Names(), 0
    try:
        with _open_text(path) as lines:
            for line, form, row in _json_rows(path, lines) if ".jsonl" in path.suffixes else _csv_rows(path, lines):
                judge = judge or Judge(form)
                at_ns, request = _request(path, line, form, row)
                if not request.output_tokens:
                    silent += 1
                    continue
                request = msgspec.structs.replace(request, id=names.name(request.id or request_id(len(timed))))
                with _naming(path, line):
                    judge.row(at_ns, request.prompt_tokens, len(request.block_hashes), request.block_tokens)
                timed.append((at_ns, request))
    except OSError as error:
        raise UsageError(f"Cannot read the trace {path}: {error.strerror or error}.") from error
    except (UnicodeDecodeError, EOFError, lzma.LZMAError, zlib.error, csv.Error) as error:
        raise UsageError(f"Cannot read the trace {path}: {error}.") from error
    if judge is None or not timed:
        raise UsageError(f"The trace {path} has no requests{' that made a token' if silent else ''}.")
    if why_not := judge.verdict():
        raise UsageError(f"{path}: {why_not}")
    timed.sort(key=lambda item: item[0])
    first_ns = judge.first_ns
    requests = [msgspec.structs.replace(r, arrival_s=(at_ns - first_ns) / NS_PER_S) for at_ns, r in timed]
    return Trace(requests, silent)


class _Names:
    """No two requests have the same: clients may give an id twice, and files may be put together."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._again: dict[str, int] = {}

    def name(self, given: str) -> str:
        name = given
        while name in self._taken:
            self._again[given] = self._again.get(given, 1) + 1
            name = f"{given}#{self._again[given]}"
        self._taken.add(name)
        return name


def _open_text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    if path.suffix == ".xz":
        return io.TextIOWrapper(lzma.open(path), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


@contextlib.contextmanager
def _naming(path: Path, line: int) -> Iterator[None]:
    """A ValueError says what is wrong with a row; who reads it wants to know which."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{path}:{line}: {error}") from error


def _csv_rows(path: Path, lines: TextIO) -> Iterator[tuple[int, Form, Row]]:
    reader = csv.DictReader(lines)
    header = reader.fieldnames or []
    with _naming(path, 1):
        form = form_of_csv(header)
    for row in reader:
        if None in row or None in row.values():
            raise UsageError(f"{path}:{reader.line_num}: this row does not have {len(header)} fields.")
        yield reader.line_num, form, row


def _json_rows(path: Path, lines: TextIO) -> Iterator[tuple[int, Form, Row]]:
    form: Form | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line)
        except ValueError as error:
            if form is OURS and not line.endswith("\n"):
                return  # a server is writing it, or was killed then
            raise UsageError(f"{path}:{number}: not a JSON object: {error}.") from error
        if not isinstance(row, dict):
            raise UsageError(f"{path}:{number}: not a JSON object.")
        with _naming(path, number):
            form = form or form_of_json(row)
        if not form.fits(row):
            lacking = [name for name in form.needed if name not in row]
            what = f"this row lacks {lacking[0]}" if lacking else "this row is of another form"
            raise UsageError(f"{path}:{number}: {what}; the first one is of {form}.")
        yield number, form, row


def _request(path: Path, line: int, form: Form, row: Row) -> tuple[int, WorkloadRequest]:
    def field(name: str, read: Callable[[Any], Any], what: str) -> Any:
        try:
            return read(row[name])
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"{path}:{line}: {name} is {row[name]!r}, not {what}.") from error

    def given(name: str, read: Callable[[Any], Any], what: str, default: Any) -> Any:
        return field(name, read, what) if row.get(name) else default

    at_ns = field(form.time, form.nanoseconds, form.time_is)
    return at_ns, WorkloadRequest(
        id=str(row.get("id") or ""),
        arrival_s=at_ns / NS_PER_S,
        prompt_tokens=field(form.prompt, _positive, "a number of tokens"),
        output_tokens=field(form.output, _whole if form is OURS else _positive, "a number of tokens"),
        priority=given("priority", lambda v: Priority(int(v)), "a whole number", NORMAL),
        block_hashes=given(form.hashes, _hashes, "a list of whole numbers of at least 0", ()),
        block_tokens=given("block_tokens", _positive, "a number of tokens", form.block_tokens),
        tenant=str(row.get("tenant") or ""),
        cls=str(row.get("class") or ""),
    )


def request_id(index: int) -> str:
    """The id of the request at `index`: ids in order of text are ids in order of arrival."""
    return f"r{index:06d}"


def _whole(value: Any) -> int:
    number = int(value)
    if not 0 <= number <= MOST_TOKENS or number != float(value):
        raise ValueError
    return number


def _positive(value: Any) -> int:
    if not (number := _whole(value)):
        raise ValueError
    return number


def _hashes(value: Any) -> tuple[int, ...]:
    hashes = tuple(int(item) for item in (value.split() if isinstance(value, str) else value))
    if any(item < 0 for item in hashes):
        raise ValueError
    return hashes
