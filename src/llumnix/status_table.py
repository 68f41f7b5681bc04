"""The answer of `GET /llumnix/v1/instances` as a table for people. `in` and `out` count migrations."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

_COLUMNS = ("id", "state", "pid", "run", "wait", "free/blocks", "freeness", "preempt", "in", "out")
_STYLES = {"running": "green", "draining": "yellow", "starting": "cyan", "lost": "red", "stopped": "dim"}


def print_status(status: dict[str, Any], console: Console | None = None) -> None:
    """Facts that the server does not know yet (of an instance that starts) are shown as a dash."""
    table = Table(box=None, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in ("id", "state") else "right", no_wrap=True)
    for row in status["instances"]:
        table.add_row(*_cells(row))
    console = console or Console()
    console.print(table)
    scheduler = status.get("scheduler")
    if scheduler is not None:
        pid = scheduler.get("pid")
        console.print(f"scheduler: {scheduler['state']}" + (f" (pid {pid})" if pid else ""), highlight=False)


def print_scaling(scaling: dict[str, Any], console: Console | None = None) -> None:
    """One line, and nothing if auto-scaling is off."""
    if scaling["mode"] == "off":
        return
    last = scaling["last"]
    last_step = ""
    if last is not None:
        what = f"start {last['start']}" if last["start"] else f"drain {last['drain']}"
        last_step = f"; last: {what} ({last['reason']})"
    console = console or Console()
    limits = f"{scaling['min_instances']} to {scaling['max_instances']} instances"
    console.print(f"scaling: {scaling['mode']}, {limits}; {scaling['now']}{last_step}", highlight=False, soft_wrap=True)


def _cells(row: dict[str, Any]) -> list[str]:
    state = row["state"]
    style = _STYLES.get(state, "")
    blocks = "–" if not row.get("total_blocks") else f"{row['free_blocks']}/{row['total_blocks']}"
    freeness = row.get("freeness")
    return [
        row["id"],
        f"[{style}]{state}[/{style}]" if style else state,
        _shown(row, "pid"),
        _shown(row, "running"),
        _shown(row, "waiting"),
        blocks,
        "–" if freeness is None else f"{freeness:.1f}",
        _shown(row, "preemptions"),
        _shown(row, "migrations_in"),
        _shown(row, "migrations_out"),
    ]


def _shown(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    return "–" if value is None else str(value)
