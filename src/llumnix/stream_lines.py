"""Lines of a stream over HTTP. Each ends with a line feed: who splits texts as Python does would also end one at
U+0085 or U+2028, which models do say, and which a server need not escape."""

from __future__ import annotations

from collections.abc import Iterator

MAX_LINE_BYTES = 1 << 20
"""A line of an answer that is longer than this is malformed."""


class LineSplitter:
    """Lines from reads that may end anywhere."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that `data` completes, without their ends. Raises ValueError for one without an end in sight."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise ValueError("malformed answer")
        for line in lines:
            yield line.rstrip(b"\r")
