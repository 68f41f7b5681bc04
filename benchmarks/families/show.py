"""Makes a family's checkpoint and prints what to put behind `llumnix serve` or `vllm serve`.

llumnix serve $(python benchmarks/families/show.py sliding) --instances 2
python benchmarks/families/show.py                      the list of them
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from families.table import CANNOT_RUN, FAMILIES, engine_flags


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", nargs="?", choices=FAMILIES)
    name = parser.parse_args().name
    if name:
        print(shlex.join(engine_flags(name)))
        return
    table = Table("name", "like", "on vLLM's CPU build")
    for each, family in FAMILIES.items():
        table.add_row(each, family.like, family.gap)
    for what, why in CANNOT_RUN.items():
        table.add_row("", what, f"does not run: {why}")
    Console().print(table)


if __name__ == "__main__":
    main()
