"""What the admin API answers, as tables for people. A dash stands for what the server does not know (yet)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llumnix.api.bodies import ClientRequest, InstanceRow, InstancesAnswer, ScalingRow
from llumnix.control.class_counts import ClassRow
from llumnix.errors import ServerRefused
from llumnix.plain import plain
from llumnix.report.records import MOVED, MigrationRecord
from llumnix.types import Role, by_number

_STATES = {"running": "green", "draining": "yellow", "starting": "cyan", "lost": "red", "stopped": "dim"}
_LOADS = {"tight": "yellow", "over": "red"}
_LONG = ("reason", "can move", "outcome")
_LEFT = (
    *("id", "state", "role", "instance", "priority", "can move", "from", "to", "outcome", "order", "reason", "when"),
    *("class", "tenant", "refused"),
)


def print_status(status: InstancesAnswer) -> None:
    _print(status_table(status), console_here())


def watch_status(ask: Callable[[], InstancesAnswer], interval_s: float, console: Console | None = None) -> None:
    """Shows the status again and again until Ctrl-C: in place on a terminal, else one below the other. A server that
    was there and does not answer now is waited for."""
    console = console or console_here()
    shown = _stamped(status_table(ask()))
    try:
        if not console.is_terminal:
            while True:
                _print(shown, console)
                time.sleep(interval_s)
                shown = _look(ask)
        with Live(shown, console=console, auto_refresh=False, vertical_overflow="visible") as live:
            while True:
                time.sleep(interval_s)
                live.update(_look(ask), refresh=True)
    except KeyboardInterrupt:
        return


def print_requests(rows: list[ClientRequest]) -> None:
    rows = sorted(rows, key=lambda row: (by_number(row.instance), row.id))
    _print_rows(requests_table(rows), "no request runs or waits")


def requests_table(rows: list[ClientRequest]) -> Table:
    table = _table("id", "instance", "state", "priority", "prompt tokens", "output tokens", "moves", "can move")
    for row in rows:
        movable = "yes" if row.movable else f"no: {row.why_pinned}"
        facts = ("id", "instance", "state", "priority", "prompt_tokens", "output_tokens", "migrations")
        add_row(table, *(_shown(getattr(row, fact)) for fact in facts), movable)
    return table


def print_moves(rows: list[MigrationRecord]) -> None:
    """Oldest first, as in a log: the newest stands above the prompt."""
    _print_rows(moves_table(rows[::-1]), "nothing has moved yet")


def moves_table(rows: list[MigrationRecord]) -> Table:
    table = _table("when", "id", "from", "to", "downtime", "MB", "outcome", "order", "reason")
    for row in rows:
        moved = row.outcome == MOVED
        downtime = f"{row.downtime_ms:.1f} ms" if row.downtime_ms is not None else "–"
        add_row(
            table,
            time.strftime("%H:%M:%S", time.localtime(row.at_s)),
            *(row.request_id, row.source, row.target),
            downtime,
            f"{row.bytes / 1e6:.1f}" if moved else "–",
            Text(row.outcome, style="" if moved else "yellow"),
            *(row.move_id or "–", row.reason),
        )
    return table


def print_classes(rows: Sequence[ClassRow]) -> None:
    _print_rows(classes_table(rows), "no request has come yet")


def classes_table(rows: Sequence[ClassRow]) -> Table:
    table = _table("class", "tenant", "held", "running", "tokens/min", "work", "TTFT met", "TPOT met", "refused")
    for row in rows:
        add_row(
            table,
            *(row.cls or "–", row.tenant or "–", str(row.held), str(row.running)),
            *(f"{row.tokens_per_minute:,}", f"{row.work:,.0f}"),
            *(met_share(row.ttft_met, row.ttft_missed), met_share(row.tpot_met, row.tpot_missed)),
            refusals(row.refused),
        )
    return table


def met_share(met: int, missed: int) -> str:
    return f"{met / (met + missed):.1%} of {met + missed:,}" if met + missed else "–"


def refusals(by_status: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} × {status}" for status, count in sorted(by_status.items())) or "–"


def _print_rows(table: Table, nothing: str) -> None:
    _print(table if table.row_count else Text(nothing), console_here())


def _print(shown: Group | Table | Text, console: Console) -> None:
    console.print(shown, soft_wrap=True)


def console_here() -> Console:
    """Into a pipe or a file nothing is cut to a width that nobody has."""
    console = Console()
    return console if console.is_terminal else Console(width=10_000)


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=name not in _LONG, overflow="fold")
    return table


def add_row(table: Table, *cells: str | Text) -> None:
    """Cells that say what they say: no markup, no names of emoji."""
    table.add_row(*(Text(plain(str(cell)), cell.style if isinstance(cell, Text) else "") for cell in cells))


def _look(ask: Callable[[], InstancesAnswer]) -> Group:
    try:
        return _stamped(status_table(ask()))
    except ServerRefused as error:
        return _stamped(Text(plain(str(error)), style="red"))


def _stamped(shown: Group | Text) -> Group:
    return Group(Text(time.strftime("%H:%M:%S"), style="dim"), shown)


# the status


def status_table(status: InstancesAnswer) -> Group:
    roles = any(row.role is not Role.MIXED for row in status.instances)
    names = ("id", "state", *(["role"] if roles else []), "pid", "run", "wait", "free/blocks", "freeness")
    table = _table(*names, "preempt", "in", "out")
    for row in status.instances:
        add_row(table, *_cells(row, roles))
    return Group(table, *_below(status))


def _cells(row: InstanceRow, roles: bool) -> Iterable[str | Text]:
    yield row.id
    yield Text(row.state, style=_STATES.get(row.state, ""))
    if roles:
        yield row.role
    yield from map(_shown, (row.pid, row.running, row.waiting))
    yield f"{row.free_blocks}/{row.total_blocks}" if row.total_blocks else "–"
    yield _freeness(row)
    yield from map(_shown, (row.preemptions, row.migrations_in, row.migrations_out))


def _freeness(row: InstanceRow) -> Text:
    number = "" if row.freeness is None else f"{row.freeness:.1f} "
    word = row.load or ""
    return Text(f"{number}{word}".strip() or "–", style=_LOADS.get(word, ""))


def _below(status: InstancesAnswer) -> Iterable[Text]:
    limits, scheduler = status.freeness_limits, status.scheduler
    if limits is not None:
        give, take = f"{limits.give:g}", f"{limits.take:g}"
        between = "" if give == take else f" ≤ steady ≤ {take}"
        yield Text(
            f"freeness: free blocks per request, over < 0 ≤ tight < {give}{between} < roomy; in, out: moves",
            style="dim",
        )
    if scheduler is not None:
        yield Text(plain(f"scheduler: {scheduler.state}" + (f" (pid {scheduler.pid})" if scheduler.pid else "")))
    if status.scaling is not None and status.scaling.mode != "off":
        yield Text(plain(_scaling(status.scaling)))


def _scaling(scaling: ScalingRow) -> str:
    last = "" if scaling.last is None else f"; last: {scaling.last.what} ({scaling.last.reason})"
    limits = f"{scaling.min_instances} to {scaling.max_instances} instances"
    return f"scaling: {scaling.mode}, {limits}; {scaling.now}{last}"


def _shown(value: object) -> str:
    return "–" if value is None else str(value)
