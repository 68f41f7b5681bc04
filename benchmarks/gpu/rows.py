"""What parts yield, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def table(rows: Sequence[Row]) -> str:
    """Columns in the order in which they first appear."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_cell(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def _cell(value: Any) -> str:
    return str(value)[:60]


def problems(rows: Sequence[Row]) -> list[str]:
    """What must not be, in all that was measured; with no rows of a kind, nothing is wrong with it."""
    found = [f"{row['part']}: {row['error']}" for row in rows if "error" in row]
    wrong = sum(row.get("wrong_blocks", 0) for row in rows)
    if wrong:
        found.append(f"{wrong} wrong blocks")
    if any(row.get("missing_bytes", 0) for row in rows):
        found.append("bytes were missing")
    for row in rows:
        if "spoilt_blocks" in row and row["fence"] and row["spoilt_blocks"]:
            found.append(f"{row['case']}: a fence did not help")
        if row.get("must_be_spoilt") and not row["spoilt_blocks"]:
            found.append(f"{row['case']}: nothing was spoilt without a fence, so the fence was not shown to help")
        if row.get("context_lives") is False:
            found.append("the device's context did not survive its peer")
        if row.get("memory_is_free") is False:
            found.append("the memory of a dead peer was not free")
    if any(row.get("gpu_is_told") is False for row in rows):
        found.append("which GPU this is cannot be told, so instances move blocks through the host by default")
    return found
