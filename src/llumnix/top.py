"""`llumnix top`: instances, the requests that are largest, and the last moves, on the whole screen until `q`; into a
pipe, once."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from llumnix.api.bodies import ClientRequest
from llumnix.client import AdminClient
from llumnix.errors import ServerRefused
from llumnix.plain import plain
from llumnix.status_table import console_here, moves_table, requests_table, status_table
from llumnix.types import by_number

_MOVES = 6
_IN_A_PIPE = 100  # lines
_FRAME = 9
"""Lines that are no rows: clock, headings, names of columns, what stands below the instances, empty lines."""

_ORDERS: dict[str, tuple[str, Callable[[ClientRequest], tuple[object, ...]]]] = {
    "t": ("most tokens first", lambda row: (-(row.prompt_tokens + row.output_tokens), row.id)),
    "m": ("most moves first", lambda row: (-row.migrations, row.id)),
    "i": ("by instance", lambda row: (by_number(row.instance), row.id)),
}
"""By key."""


def show(client: AdminClient, interval_s: float, console: Console | None = None) -> None:
    """Until `q` or Ctrl-C. A server that was there and does not answer now is waited for."""
    console, order = console or console_here(), "t"
    if not (console.is_terminal and sys.stdin.isatty()):
        console.print(picture(client, order, _IN_A_PIPE), soft_wrap=True)
        return
    shown = picture(client, order, console.height)  # one that was never there is no reason to clear the screen
    with Live(shown, console=console, screen=True, auto_refresh=False) as live, _single_keys() as key_within:
        while (key := key_within(interval_s)) != "q":
            order = key if key in _ORDERS else order
            try:
                shown = picture(client, order, console.height)
            except ServerRefused as error:
                shown = Text(plain(str(error)), style="red")
            live.update(shown, refresh=True)


def picture(client: AdminClient, order: str, lines: int) -> RenderableType:
    """Of so many lines; the requests get what is left of them. Raises ServerRefused."""
    status, requests, moves = client.status(), client.requests(), client.moves(_MOVES)
    words, by = _ORDERS[order]
    room = max(1, lines - _FRAME - len(status.instances) - len(moves))
    rows = sorted(requests, key=by)[:room]
    keys = "  ".join(f"{key} {what}" for key, (what, _) in _ORDERS.items())
    return Group(
        Text(f"{time.strftime('%H:%M:%S')}  q quit  {keys}", style="dim", no_wrap=True),
        status_table(status),
        _heading(
            f"{len(requests)} request{'s' if len(requests) != 1 else ''}, {words}"
            + (f"; {len(rows)} shown" if len(rows) < len(requests) else "")
        ),
        requests_table(rows) if rows else Text("none runs or waits"),
        _heading("last moves"),
        moves_table(moves) if moves else Text("nothing has moved yet"),
    )


def _heading(words: str) -> Text:
    return Text(f"\n{words}", style="bold")


@contextmanager
def _single_keys() -> Iterator[Callable[[float], str]]:
    """Keys as they are pressed: the function waits for one, so many seconds at most (then it is empty)."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def within(timeout_s: float) -> str:
        ready, _, _ = select.select([terminal], [], [], timeout_s)
        return os.read(terminal, 1).decode(errors="replace") or "q" if ready else ""

    try:
        tty.setcbreak(terminal, termios.TCSANOW)  # what was typed already counts
        yield within
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
