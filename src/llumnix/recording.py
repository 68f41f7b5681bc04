"""Recordings of the control machines: every event and the commands that it caused, one JSON line each.

With the environment variable `LLUMNIX_RECORD=DIR` the scheduler process, every front end and every instance write one
file each into DIR. The first line says how the machine was made (`control/replay.py`), so a file is all that it takes
to run it again:

    from llumnix.recording import differences
    assert not differences(Path("DIR/i0.jsonl"))

A llumlet's events of requests that never move are not recorded: they change nothing. Prompts, outputs and KV are in no
recording.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from llumnix.appending import private
from llumnix.control.replay import AnyEntry, Begin, Differs, replay_recording
from llumnix.errors import UsageError
from llumnix.json_lines import decode_lines, read_lines
from llumnix.paths import expanded

log = logging.getLogger(__name__)

RECORD = "LLUMNIX_RECORD"
"""Environment variable: the folder that recordings go to; without it nothing is recorded."""

RecordStep = Callable[..., None]
"""record(event, commands), and of a front end the tokens that were delivered before."""


def recorder(name: str, begin: Begin) -> RecordStep | None:
    """What writes `DIR/NAME.jsonl`; None if nobody asked for recordings. Each line is out before the next event: a
    process that is killed leaves a whole file. What cannot be written, as on a full disk, ends the recording, and not
    who is recorded."""
    folder = os.environ.get(RECORD)
    if not folder:
        return None
    path = expanded(folder) / f"{name}.jsonl"
    encoder = msgspec.json.Encoder()
    entry: Callable[..., Any] = begin.entry
    goes_on = True

    def write(line: bytes, mode: str) -> None:
        nonlocal goes_on
        try:
            with open(path, mode, opener=private) as file:
                file.write(line + b"\n")
        except OSError as error:
            goes_on = False
            log.error("%s ends here: %s", path, error)

    def record(*happened: Any) -> None:
        if goes_on:
            write(encoder.encode(entry(*happened)), "ab")

    with contextlib.suppress(OSError):  # opening the file says why
        path.parent.mkdir(parents=True, exist_ok=True)
    write(msgspec.json.encode(begin), "wb")
    return record


def differences(path: Path) -> list[Differs]:
    """Replays a recording; the events that are answered otherwise now. Raises UsageError for a file that is none."""
    lines = read_lines(path, "recording")
    try:
        begin = msgspec.json.decode(lines[0] if lines else b"", type=Begin)
    except ValueError as error:
        raise UsageError(f"{path}:1: not the beginning of a recording: {error}.") from None
    decoder: msgspec.json.Decoder[AnyEntry] = msgspec.json.Decoder(begin.entry_type)
    return replay_recording(begin, decode_lines(lines[1:], decoder, path, "recording", first=2))
