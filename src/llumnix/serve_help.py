"""`llumnix serve --help=all`, `--help=GROUP` and `--help=FLAG`, as users of `vllm serve` know them."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence

from llumnix.flags import serve_parser
from llumnix.vllm_words import flag_rows

_GROUPS = {"clusterconfig": 0, "policyconfig": 1, "migrationconfig": 2, "scalingconfig": 3}
"""Ours, by the names of their dataclasses, as vLLM names its own; in the parser's order."""


def asked_for(words: Sequence[str]) -> str | None:
    """The word in `--help=WORD`, if it was given."""
    return next((word.partition("=")[2] for word in words if word.startswith("--help=")), None)


def show(keyword: str) -> None:
    """Prints what is known of it. Ours comes at once; vLLM's, if that is meant, when vLLM is imported."""
    keyword = keyword.lower().replace("_", "-").lstrip("-")
    parser = serve_parser()
    groups = [group for group in parser._action_groups if group.title not in ("positional arguments", "options")]
    mine: list[argparse.Action] = []
    if keyword in _GROUPS:
        mine = list(groups[_GROUPS[keyword]]._group_actions)
    elif keyword != "all":
        mine = [action for action in parser._actions if any(keyword in name for name in action.option_strings)]
    if keyword == "all":
        print(parser.format_help(), end="\n\n", flush=True)
    elif mine:
        print(_explained(parser, mine), flush=True)
    if keyword in _GROUPS or any(f"--{keyword}" in action.option_strings for action in mine):
        return
    text = _of_vllm(keyword)
    if text and not (mine and text.startswith("No group")):
        print(text)


def _explained(parser: argparse.ArgumentParser, actions: Sequence[argparse.Action]) -> str:
    formatter = parser.formatter_class(prog=parser.prog)
    formatter.start_section("Llumnix's own")
    formatter.add_arguments(actions)
    formatter.end_section()
    return formatter.format_help()


def _of_vllm(keyword: str) -> str:
    if importlib.util.find_spec("vllm") is not None:
        from llumnix.engine.vllm.front_end.vllm_help import vllm_help

        return vllm_help(keyword)
    names = [row["flag"] for row in flag_rows() if keyword in ("all", row["group"].lower()) or keyword in row["flag"]]
    return "vLLM's (it is not installed here, so by their names only): " + " ".join(names) if names else ""
