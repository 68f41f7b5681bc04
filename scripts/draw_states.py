#!/usr/bin/env python
"""Draws the transition tables of the migration protocol into docs/understand/protocol.md.

python scripts/draw_states.py          rewrites the pictures
python scripts/draw_states.py --check  exit code 1 if they are not those of the tables
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from llumnix.control.migration import SOURCE, TARGET
from llumnix.control.transitions import Table

DOCUMENT = Path(__file__).parent.parent / "docs" / "understand" / "protocol.md"


def draw(table: Table[Any]) -> str:
    """A mermaid state diagram. Edges that change nothing (late messages, news) are left out; events that lead from one
    state to the same other share an arrow."""
    first = next(iter(table))
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first}"]
    for state, row in table.items():
        arrows: dict[str, list[str]] = {}
        for event, edge in row.items():
            for to in edge.to:
                if to is not state or len(edge.to) > 1:
                    arrows.setdefault(to, []).append(event.__name__)
        lines += [f"    {state} --> {to}: {', '.join(sorted(events))}" for to, events in arrows.items()]
        if not row:
            lines.append(f"    {state} --> [*]")
    return "\n".join([*lines, "```"])


def tabulate(table: Table[Any]) -> str:
    """All edges, one line per event, one column per state."""
    states = [state for state, row in table.items() if row]
    events = sorted({event.__name__ for row in table.values() for event in row})
    lines = ["| | " + " | ".join(states) + " |", "|---" * (len(states) + 1) + "|"]
    for event in events:
        cells = []
        for state in states:
            edge = next((edge for kind, edge in table[state].items() if kind.__name__ == event), None)
            cells.append("" if edge is None else "·" if edge.to == (state,) else " / ".join(edge.to))
        lines.append(f"| {event} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def redrawn(text: str) -> str:
    """The document with each part between `<!-- NAME -->` and `<!-- end -->` drawn anew."""
    parts = {
        "source diagram": draw(SOURCE),
        "source table": tabulate(SOURCE),
        "target diagram": draw(TARGET),
        "target table": tabulate(TARGET),
    }
    for name, part in parts.items():
        place = re.search(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", text, re.DOTALL)
        if place is None:
            raise ValueError(f"{DOCUMENT} has no place for the {name}")
        text = f"{text[: place.start()]}{part}\n{text[place.end() :]}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the document is up to date")
    arguments = parser.parse_args()
    old = DOCUMENT.read_text()
    new = redrawn(old)
    if arguments.check:
        return int(new != old)
    DOCUMENT.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
