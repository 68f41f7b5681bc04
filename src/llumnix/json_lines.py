"""Files with a line of JSON for each entry, left by processes that may be killed at any time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from llumnix.errors import UsageError, refused_as

Entry = TypeVar("Entry")


def read_lines(path: Path, what: str) -> list[bytes]:
    """What a killed process did not write to its end is no line. Raises UsageError: `what` cannot be read."""
    with refused_as(f"Cannot read the {what} {path}"):
        return path.read_bytes().rpartition(b"\n")[0].splitlines()


def decode_lines(
    lines: Iterable[bytes], decoder: msgspec.json.Decoder[Entry], path: Path, what: str, first: int = 1
) -> Iterator[Entry]:
    """`first`: number of the first of them in its file. Raises UsageError, which names a line that is no entry."""
    for number, line in enumerate(lines, start=first):
        try:
            yield decoder.decode(line)
        except ValueError as error:
            raise UsageError(f"{path}:{number}: not an entry of a {what}: {error}.") from None
