"""Recorded runs as they were: the files of all front ends together, by time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from llumnix.errors import UsageError
from llumnix.json_lines import decode_lines, read_lines
from llumnix.record.form import (
    ABOUT,
    INSTANCES,
    MOVES,
    REQUESTS,
    STEPS,
    VERSION,
    About,
    RecordedMove,
    RecordedRequest,
    RecordedStep,
    parts_of,
)
from llumnix.report.records import InstanceRecord, RecordT, read_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    folder: Path
    about: About
    """Of any front end; `dropped` and `removed` are of all."""
    requests: list[RecordedRequest]
    """Sequences that ended, by arrival. Some may have arrived before the run began, and then at less than 0."""
    moves: list[RecordedMove]
    instances: list[InstanceRecord]
    steps: list[RecordedStep]

    @property
    def end_s(self) -> float:
        """When something was last written down."""
        ends = [request.arrival_s + (request.latency_s or 0.0) for request in self.requests]
        return max([*ends, *(row.at_s for row in self.instances)], default=0.0)


def read_run(path: Path) -> RecordedRun:
    """The recorded run in `path`; if that is a folder of several, the newest. Raises UsageError, one sentence, for what
    is none."""
    folder = _folder_of(path)
    about = _about(folder)
    decoder, what = msgspec.json.Decoder(RecordedRequest), "recorded run"
    requests = [
        request
        for file in parts_of(folder, REQUESTS)
        for request in decode_lines(read_lines(file, what), decoder, file, what)
    ]
    return RecordedRun(
        folder=folder,
        about=about,
        requests=sorted(requests, key=lambda each: (each.arrival_s, each.id)),
        moves=sorted(_rows(folder, MOVES, RecordedMove), key=lambda row: row.at_s),
        instances=sorted(_rows(folder, INSTANCES, InstanceRecord), key=lambda row: row.at_s),
        steps=sorted(_rows(folder, STEPS, RecordedStep), key=lambda row: row.at_s),
    )


def read_about(path: Path) -> About:
    """What a recorded run says of itself; as `read_run` otherwise."""
    return _about(_folder_of(path))


def _folder_of(path: Path) -> Path:
    """Names of runs are their times, so the newest is the last."""
    if not os.path.isdir(path):
        raise UsageError(f"There is no recorded run {path}.")
    inside = sorted(about.parent for about in path.glob(f"*/{ABOUT}-f*.json"))
    if any(path.glob(f"{ABOUT}-f*.json")):
        return path
    if not inside:
        raise UsageError(f"{path} is no recorded run, and has none in it: `llumnix serve --record DIR` makes them.")
    return inside[-1]


def _about(folder: Path) -> About:
    abouts = [about_in(file) for file in sorted(folder.glob(f"{ABOUT}-f*.json"))]
    if len({about.began_at_s for about in abouts}) > 1:
        raise UsageError(f"{folder} has files of several runs in it.")
    return msgspec.structs.replace(
        abouts[0], dropped=sum(about.dropped for about in abouts), removed=sum(about.removed for about in abouts)
    )


def about_in(file: Path) -> About:
    """Of one front end. Raises UsageError, one sentence."""
    try:
        about = msgspec.json.decode(file.read_bytes(), type=About)
    except OSError as error:
        raise UsageError(f"Cannot read {file}: {error.strerror}.") from error
    except (ValueError, UsageError) as error:
        raise UsageError(f"{file} does not tell of a recorded run: {str(error).rstrip('.')}.") from error
    if about.version != VERSION:
        raise UsageError(f"{file} is of version {about.version} of recorded runs, and this Llumnix reads {VERSION}.")
    return about


def _rows(folder: Path, kind: str, of: type[RecordT]) -> list[RecordT]:
    return [row for file in parts_of(folder, kind) for row in read_rows(file, of, grows=True)]
