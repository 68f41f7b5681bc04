"""Prints the manual page, made from the parsers of all commands: `man <(llumnix man)`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llumnix import __version__

if TYPE_CHECKING:
    from llumnix.cli import Command

HEAD = f"""\
.\\" Made by `llumnix man`.
.TH LLUMNIX 1 "" "llumnix {__version__}" "User Commands"
.SH NAME
llumnix \\- many LLM engines served as one, with live migration of running requests
.SH SYNOPSIS
.B llumnix
.I COMMAND
[\\fIflags\\fR]
.SH DESCRIPTION
.B llumnix serve
serves a model on several vLLM engines behind one OpenAI\\-compatible address. Requests go to the engine that serves
them soonest, and move to another one, while they generate, when that turns out to be better. The other commands watch
and steer such a server, measure it, or simulate it.
.SH COMMANDS
"""

TAIL = """\
.SH EXIT STATUS
.TP
.B 0
Done.
.TP
.B 1
It failed, the server cannot be reached, or it refused.
.TP
.B 2
Bad use, told in one sentence on the standard error.
.TP
.B 3
.B llumnix whatif
simulated nothing that is credible.
.SH ENVIRONMENT
.TP
.B LLUMNIX_URL
Address of the server that commands ask; http://127.0.0.1:8000 without it.
.TP
.B LLUMNIX_API_KEY
Its key; VLLM_API_KEY counts, too.
.TP
.B LLUMNIX_RECORD
Folder for recordings of what the control machines hear and answer.
"""


def roff(text: str) -> str:
    """As it is: nothing in it is an instruction to troff."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = "".join(letter if letter.isascii() else f"\\[u{ord(letter):04X}]" for letter in text)
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(values: argparse.Namespace) -> int:
    from llumnix.cli import COMMANDS

    print(page(COMMANDS), end="")
    return 0


def page(commands: Mapping[str, Command]) -> str:
    return HEAD + "".join(_of_command(name, command) for name, command in commands.items()) + TAIL


def _of_command(name: str, command: Command) -> str:
    parser = command.parser()
    parts = [f".SS llumnix {roff(name)}\n{roff(command.sentence)}\n"]
    for action in parser._actions:
        if action.help != argparse.SUPPRESS and "--help" not in action.option_strings:
            parts.append(_of_action(parser, action))
    if name == "serve":
        parts.append('.PP\nAll other flags are those of\n.BR "vllm serve" .\n')
    return "".join(parts)


def _of_action(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    words = roff(_metavar(action)).replace(",", ",\\:")  # a long list may be broken there
    takes = "" if action.nargs == 0 else f" \\fI{words}\\fR"
    names = ", ".join(f"\\fB{roff(flag)}\\fR" for flag in action.option_strings)
    text = (action.help or "") % {"prog": parser.prog, "default": action.default}
    return f".TP\n{names}{takes if names else takes.strip()}\n{roff(text)}\n"


def _metavar(action: argparse.Action) -> str:
    if action.metavar is not None:
        return str(action.metavar)
    return "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
