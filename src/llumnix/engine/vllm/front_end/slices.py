"""Long lists, some rows at a time: in between the event loop turns, and with it every stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

ROWS_AT_ONCE = 32
"""What becomes of a row takes a few microseconds, and the next token waits for all of these."""

RowT = TypeVar("RowT")


async def in_slices(rows: Sequence[RowT], at_once: int = ROWS_AT_ONCE) -> AsyncIterator[Sequence[RowT]]:
    for first in range(0, len(rows), at_once):
        await asyncio.sleep(0)
        yield rows[first : first + at_once]
