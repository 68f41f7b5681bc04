"""What was predicted: as tables on the terminal, as Markdown, as JSON."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llumnix.plain import plain
from llumnix.status_table import add_row
from llumnix.whatif.metrics import Metric
from llumnix.whatif.prediction import NOT, Credibility, Prediction

WHATIF_JSON, WHATIF_MD = "whatif.json", "whatif.md"


class TriedAlternative(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    """As it was asked for."""
    instance_hours: float
    predictions: list[Prediction]


class WhatIf(msgspec.Struct, frozen=True, kw_only=True):
    """`whatif.json`."""

    folder: str
    about: list[str]
    """Sentences: what was recorded, and what is not in it."""
    instance_hours: float
    repeats: int
    known: list[Credibility]
    tried: list[TriedAlternative]


def print_what_if(found: WhatIf, console: Console) -> None:
    for sentence in found.about:
        console.print(Text(plain(sentence)), soft_wrap=True)
    for title, head, rows in _tables(found):
        table = Table(title=Text(plain(title)), title_justify="left", box=SIMPLE_HEAD)
        for place, column in enumerate(head):
            last = place == len(head) - 1
            table.add_column(column, justify="left" if last or not place else "right", no_wrap=not last)
        for row in rows:
            add_row(table, *row)
        console.print(table)


def write_what_if(folder: Path, found: WhatIf) -> None:
    """Into a folder that is there."""
    (folder / WHATIF_JSON).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    lines = ["\n".join(found.about), ""]
    for title, head, rows in _tables(found):
        lines += [f"**{title}**", "", f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
        lines += [*(f"| {' | '.join(row)} |" for row in rows), ""]
    (folder / WHATIF_MD).write_text("\n".join(lines))


Rows = list[tuple[str, ...]]


def _tables(found: WhatIf) -> list[tuple[str, tuple[str, ...], Rows]]:
    known: Rows = [
        (
            each.metric.name,
            _shown(each.measured, each.metric),
            _shown(each.simulated, each.metric),
            "–" if each.error is None else f"{each.error:+.0%}",
            f"{each.grade}: {each.why}" if each.why else each.grade,
        )
        for each in found.known
    ]
    tables: list[tuple[str, tuple[str, ...], Rows]] = [
        (
            f"as it was ({found.instance_hours:.3g} instance-hours), simulated {found.repeats} times",
            ("", "measured", "simulated", "off by", "credibility"),
            known,
        )
    ]
    believed = {each.metric.name: each for each in found.known if each.grade != NOT}
    for alternative in found.tried if believed else ():
        rows: Rows = [
            (name, _shown(believed[name].measured, each.metric), _shown(each.value, each.metric), _bar(each))
            for each in alternative.predictions
            if (name := each.metric.name) in believed
        ]
        title = f"{alternative.name} ({alternative.instance_hours:.3g} instance-hours)"
        tables.append((title, ("", "as it was", "predicted", "four of five end in"), rows))
    return tables


def _bar(prediction: Prediction) -> str:
    if prediction.low is None or prediction.high is None:
        return "–"
    return f"{_shown(prediction.low, prediction.metric)} … {_shown(prediction.high, prediction.metric)}"


def _shown(value: float | None, metric: Metric) -> str:
    return "–" if value is None else f"{_digits(value)} {metric.unit}".rstrip()


def _digits(value: float) -> str:
    """Three that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
