"""The help of vLLM's own flags, by vLLM's own parser, with what Llumnix makes of them. Imports vLLM: seconds."""

from __future__ import annotations

import os
from typing import Any

from llumnix.vllm_words import flag_rows


def vllm_help(keyword: str) -> str:
    """What `vllm serve --help=KEYWORD` prints: `all`, a group, or flags with that word in their names."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from llumnix.engine.vllm.versions import command_line

    parser: Any = command_line().make_arg_parser(FlexibleArgumentParser(prog="llumnix serve", usage="", add_help=False))
    notes = {row["flag"]: row["note"] for row in flag_rows() if row["note"]}
    for action in parser._actions:
        note = next((notes[name] for name in action.option_strings if name in notes), "")
        if note:
            action.help = f"{action.help or ''} [Llumnix: {note}]".replace("%", "%%").replace("%%%%", "%%")
    parser._search_keyword = keyword
    text: str = parser.format_help()
    return text.strip()
