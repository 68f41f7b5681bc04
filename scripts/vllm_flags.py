"""Brings `src/llumnix/vllm_words/*.csv` up to the vLLM that is installed, keeping all decisions, and writes
docs/use/vllm-flags.md from them. What vLLM has new gets the decision `undecided`, which a test does not let pass.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path
from typing import Any

from llumnix.vllm_words import FLAGS, VARIABLES, VERSION, flag_rows, variable_rows

TARGET = Path(__file__).parent.parent / "docs" / "use" / "vllm-flags.md"

UNDECIDED = "undecided"

HEAD = f"""# vLLM's flags and variables here

Every flag of `vllm serve` {VERSION} is honoured by the whole cluster, or refused in one sentence before anything
starts; it makes no difference whether it stands on the command line or in a `--config` file. This page is made from
`src/llumnix/vllm_words/` by `scripts/vllm_flags.py`, and a test compares that with vLLM's own parser.

| decision | meaning |
|---|---|
| as it is | every instance and every front end gets it |
| per instance | likewise; the amount, the number or the name is that of one instance |
| ours | Llumnix gives it its own meaning, which the note tells |
| refused | the note is the sentence; the values named with it are fine |
| here | (variables) not passed on to other machines |

Flags whose decision is "as it is" and that need no word: {{plain}}

## Flags that need a word

| flag | decision | note |
|---|---|---|
{{rows}}
## Environment variables that need a word

All other variables that vLLM reads reach every process as they are.

| variable | decision | note |
|---|---|---|
{{variables}}
## What vLLM has once per process

All instances are forked from one configuration; so what vLLM gives each process or each data parallel rank of its own
is set apart in `src/llumnix/engine/vllm/apart.py`:

| what | of whom it is |
|---|---|
| draws for requests without a seed | a sequence per instance, never used twice; all follow from `--seed` |
| ports of cache events and connectors | counted up by the instance's slot, which a successor inherits |
| engine id of a connector, and so `/dev/shm/vllm_offload_…` | per instance, never used twice |
| instance id (names of shared regions, traces of functions) | per instance, never used twice |
| profiler traces, dumps of the compiler | a folder per instance, named after it |
| temporary files, rendezvous, shared memory | the instance's own folder, which goes when it ends, also killed |
| TCP ports between workers | any free one; with `VLLM_PORT` each slot begins 32 further on |
| compiled code | shared |
| counters for `/metrics`, open connections, `--max-num-queued-reqs` | one set over all front ends |
| cache of processed images and the like (`--mm-processor-cache-gb`) | one per front end; engines have none |
"""


def reference() -> str:
    flags, variables = flag_rows(), variable_rows()
    plain = ", ".join(f"`{row['flag']}`" for row in flags if row["decision"] == "as it is" and not row["note"])
    rows = "".join(
        f"| `{row['flag']}` | {row['decision']}{_fine(row)} | {row['note']} |\n"
        for row in flags
        if row["decision"] != "as it is" or row["note"]
    )
    of_variables = "".join(
        f"| `{row['variable']}` | {row['decision']}{_fine(row)} | {row['note']} |\n"
        for row in variables
        if row["decision"] != "as it is" or row["note"]
    )
    return HEAD.format(plain=plain + ".", rows=rows, variables=of_variables)


def _fine(row: dict[str, str]) -> str:
    return f" (but {', '.join(row['fine'].split())})" if row["fine"] else ""


def installed_flags() -> list[dict[str, str]]:
    """What vLLM's own parser has: names, how many values they take, their group."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(add_help=False))  # type: ignore[no-untyped-call]
    rows = []
    for group in parser._action_groups:
        for action in group._group_actions:
            if action.option_strings:
                rows.append(_row(action, group.title or ""))
    return rows


def _row(action: argparse.Action, group: str) -> dict[str, str]:
    names = [name for name in action.option_strings if not name.startswith("--no-")]
    flag = next(name for name in names if name.startswith("--"))
    others = [name for name in names if name != flag]
    return {
        "flag": flag,
        "also": " ".join(others),
        "takes": _takes(action),
        "values": _values(action),
        "group": "" if group == "options" else group,
    }


def _takes(action: Any) -> str:
    if action.nargs == 0:
        return "switch" if any(name.startswith("--no-") for name in action.option_strings) else "nothing"
    return {None: "one", "?": "optional", "+": "many", "*": "many"}[action.nargs]


def _values(action: Any) -> str:
    """What each value must be, where that is easily told: words, or `int` or `float`, with `?` for None as well."""
    kind, optional = action.type, ""
    if getattr(kind, "__name__", "") == "_optional_type":
        (cell,) = kind.__closure__
        kind, optional = cell.cell_contents, "?"
    if action.choices and kind in (None, str, int):
        return " ".join(str(choice) for choice in action.choices)
    return kind.__name__ + optional if kind in (int, float) else ""


def installed_variables() -> list[str]:
    from vllm.envs import environment_variables

    return sorted(environment_variables)


def with_decisions(rows: list[dict[str, str]], key: str, known: list[dict[str, str]]) -> list[dict[str, str]]:
    decisions = {row[key]: {name: row[name] for name in ("decision", "fine", "note")} for row in known}
    nothing = {"decision": UNDECIDED, "fine": "", "note": ""}
    return [{**row, **decisions.get(row[key], nothing)} for row in rows]


def table(rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main() -> int:
    flags = with_decisions(installed_flags(), "flag", flag_rows())
    variables = with_decisions([{"variable": name} for name in installed_variables()], "variable", variable_rows())
    FLAGS.write_text(table(flags))
    VARIABLES.write_text(table(variables))
    TARGET.write_text(reference())
    undecided = [next(iter(row.values())) for row in (*flags, *variables) if row["decision"] == UNDECIDED]
    if undecided:
        print(f"decide: {', '.join(undecided)}")
    return 1 if undecided else 0


if __name__ == "__main__":
    sys.exit(main())
