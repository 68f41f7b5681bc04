"""The records of a run, live or simulated: what every summary and every figure is made from.

A directory with `requests.csv`, `migrations.csv`, `instances.csv` (and `summary.json`, see `summary.py`). The
fields of the structs below are the columns, in order. Times are seconds from the start of the run. Numbers are
written with at most 6 decimals, so the same records are the same bytes; an empty field is "not known" or
"did not happen". Columns that a reader does not know are ignored, so that a later version may append some.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from llumnix.appending import append_whole, size_of
from llumnix.control.orders import MoveCause, MoveOutcome, StayCause
from llumnix.errors import UsageError
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.virtual_usage import migration_freeness
from llumnix.types import NORMAL, InstanceState, Priority


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One request, as its client saw it. Times count from its arrival (`arrival_s`), queueing included."""

    id: str
    arrival_s: float
    """When the workload wanted it sent, whether or not the client was late."""
    prompt_tokens: int
    output_tokens: int
    """Tokens that came, also of a request that failed later."""
    priority: Priority = NORMAL
    ttft_s: float | None = None
    """Arrival to first token."""
    tpot_s: float | None = None
    """(last token − first token) / (tokens − 1); none with fewer than two tokens."""
    latency_s: float | None = None
    """Arrival to end; none if the request failed."""
    largest_gap_s: float | None = None
    """Longest wait between two tokens: preemptions and hand-overs show here."""
    preemptions: int | None = None
    migrations: int | None = None
    """Completed moves."""
    instances: tuple[str, ...] = ()
    """Where it ran, in order; empty if not known."""
    error: str = ""
    """Why it failed, in a few words that do not vary from request to request; empty if it did not."""


class MigrationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt to move a request. `outcome` is `moved`, or why not."""

    at_s: float = msgspec.field(name="at")
    """When the attempt ended: from the start of the run, or as a server tells it, since 1970."""
    request_id: str
    source: str
    target: str
    cause: MoveCause | None = None
    """Which rule asked for it; not known in records of before."""
    reason: str = ""
    """The same as a sentence, with the numbers that decided."""
    outcome: str
    stayed_by: StayCause | None = None
    """What gave it up. `outcome` is the sentence. None: it moved, or records are of before."""
    stages: int = 0
    bytes: int = 0
    blocks_skipped: int = 0
    """Blocks that the target had in its prefix cache already."""
    copy_ms: float | None = None
    """Prepare to hand-over: the request kept decoding."""
    handover_ms: float | None = None
    """Out of the source's batch to in the target's."""
    downtime_ms: float | None = None
    """What the client saw: the gap at the hand-over, minus one normal decode step."""
    move_id: str = ""
    """Of the order, as the scheduler's log and the llumlets' stories name it; empty if not known."""


def migration_record(
    at_s: float, request_id: str, outcome: MoveOutcome, downtime_s: float | None = None
) -> MigrationRecord:
    """`request_id`: as the client knows it."""
    order, figures = outcome.order, outcome.figures
    return MigrationRecord(
        at_s=at_s,
        request_id=request_id,
        source=outcome.source,
        target=order.target,
        cause=order.cause,
        reason=order.reason,
        outcome=MOVED if outcome.ok else f"stayed: {outcome.why_not}",
        stayed_by=outcome.stayed,
        stages=figures.stages,
        bytes=figures.bytes_copied,
        blocks_skipped=figures.blocks_skipped,
        copy_ms=1e3 * figures.copy_s,
        handover_ms=1e3 * figures.handover_s,
        downtime_ms=None if downtime_s is None else 1e3 * downtime_s,
        move_id=order.move_id,
    )


MOVED = "moved"
"""The outcome of a migration that completed."""


class InstanceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The load of one instance at one moment; rows make a time series."""

    at_s: float
    instance: str
    state: InstanceState
    running: int
    waiting: int
    free_blocks: int
    total_blocks: int
    freeness: float
    """In blocks per running request; −inf while it drains."""
    preemptions: int
    """Since the instance started, as the next two."""
    preemptions_avoided: int = 0
    """Requests that left in time, so that none had to be preempted."""
    recompute_tokens_saved: int = 0
    """Tokens of those: what would have been computed twice."""


def instance_record(at_s: float, load: InstanceSnapshot, priority_target_tokens: int | None = None) -> InstanceRecord:
    """`priority_target_tokens`: None where the headroom of requests of high priority does not count (virtual_usage)."""
    return InstanceRecord(
        at_s=at_s,
        instance=load.id,
        state=load.state,
        running=load.running,
        waiting=load.waiting,
        free_blocks=load.free_blocks,
        total_blocks=load.total_blocks,
        freeness=migration_freeness(load, priority_target_tokens),
        preemptions=load.preemptions,
        preemptions_avoided=load.preemptions_avoided,
        recompute_tokens_saved=load.recompute_tokens_saved,
    )


@dataclass(frozen=True, slots=True)
class Records:
    """All records of a run."""

    requests: Sequence[RequestRecord]
    migrations: Sequence[MigrationRecord] = ()
    instances: Sequence[InstanceRecord] = ()


RecordT = TypeVar("RecordT", bound=msgspec.Struct)

REQUESTS_CSV, MIGRATIONS_CSV, INSTANCES_CSV = "requests.csv", "migrations.csv", "instances.csv"


def write_records(directory: Path, records: Records) -> None:
    """Writes the three files, also empty ones; makes the directory if need be."""
    directory.mkdir(parents=True, exist_ok=True)
    write_rows(directory / REQUESTS_CSV, RequestRecord, records.requests)
    write_rows(directory / MIGRATIONS_CSV, MigrationRecord, records.migrations)
    write_rows(directory / INSTANCES_CSV, InstanceRecord, records.instances)


def read_records(directory: Path) -> Records:
    """What `write_records` wrote there; a missing migrations.csv or instances.csv counts as empty.

    Raises UsageError if requests.csv is missing or a row is broken.
    """
    migrations, instances = directory / MIGRATIONS_CSV, directory / INSTANCES_CSV
    return Records(
        requests=read_rows(directory / REQUESTS_CSV, RequestRecord),
        migrations=read_rows(migrations, MigrationRecord) if migrations.exists() else [],
        instances=read_rows(instances, InstanceRecord) if instances.exists() else [],
    )


def write_rows(path: Path, kind: type[RecordT], rows: Iterable[RecordT]) -> None:
    """Writes `rows`, all of type `kind`, under a header. Lines end in LF on every machine."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(kind.__struct_fields__)
        for row in rows:
            writer.writerow([_text(value) for value in msgspec.structs.astuple(row)])


def append_rows(path: Path, kind: type[RecordT], rows: Iterable[RecordT]) -> None:
    """Writes `rows` behind those that are there, all or none; a new file gets its header first."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    if not size_of(path):
        writer.writerow(kind.__struct_fields__)
    writer.writerows([_text(value) for value in msgspec.structs.astuple(row)] for row in rows)
    append_whole(path, text.getvalue().encode())


def read_rows(path: Path, kind: type[RecordT], *, grows: bool = False) -> list[RecordT]:
    """The rows of `path`. If it `grows`, a last one without an end is none yet, or never will be: what of it is there
    may look like a row. Raises UsageError, with file and line, for one that cannot be a `kind`."""
    rows: list[RecordT] = []
    try:
        content = path.read_bytes()
        text = content[: content.rfind(b"\n") + 1 if grows else None].decode()
        reader = csv.DictReader(io.StringIO(text, newline=""), restkey=_TOO_MANY)
        for line in reader:
            rows.append(_row(path, reader.line_num, line, kind))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    return rows


_TOO_MANY = ""


def _row(path: Path, line: int, texts: dict[str, str], kind: type[RecordT]) -> RecordT:
    if _TOO_MANY in texts:
        raise UsageError(f"{path}:{line}: not a row of {path.name}: it has more fields than the header.")
    names = {field.name: field.encode_name for field in msgspec.structs.fields(kind)}
    values: dict[str, str | list[str]] = {names[name]: text for name, text in texts.items() if name in names and text}
    if "instances" in values:
        values["instances"] = texts["instances"].split(";")
    try:
        # An empty field is left out and takes the default of its column.
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}:{line}: not a row of {path.name}: {error}.") from error


def _text(value: object) -> str:
    """One field. Floats lose what is below 1e-6: below a microsecond nothing is measured, only rounding noise."""
    if value is None:
        return ""
    if isinstance(value, float):
        fixed = f"{value:.6f}"
        short = fixed.rstrip("0").rstrip(".") if "." in fixed else fixed
        return "0" if short == "-0" else short
    if isinstance(value, tuple):
        return ";".join(value)
    return str(value)
