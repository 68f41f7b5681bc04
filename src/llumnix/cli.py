"""`llumnix`: finds the command, parses its flags, calls it. Nothing else is imported until a command needs it.

Exit codes: 0 done; 1 it failed, or the server refused; 2 bad use, said in one sentence on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from llumnix import __version__
from llumnix.commands import SERVER_COMMANDS
from llumnix.errors import LlumnixError, UsageError
from llumnix.remote import add_server_flags

Main = Callable[[list[str]], int]


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except UsageError as error:
        print(f"llumnix: {error}", file=sys.stderr)
        return 2
    except LlumnixError as error:
        print(f"llumnix: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `llumnix … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(__version__)
        return 0
    if words[0] not in COMMANDS:
        from llumnix.command_line import closest

        meant = closest(words[0], [*COMMANDS, "--version", "--help"])
        raise UsageError(
            f"There is no command {words[0]!r}; "
            + (f"did you mean {meant}?" if meant else "`llumnix --help` lists them.")
        )
    _, run = COMMANDS[words[0]]
    return run(words[1:])


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {sentence}" for name, (sentence, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: llumnix COMMAND …",
            "",
            "Many LLM engines served as one, with live migration of running requests.",
            "",
            *lines,
            "",
            "`llumnix COMMAND --help` explains one.",
        ]
    )


def _serve(words: list[str]) -> int:
    from llumnix import flags, serve_help, tiny_model
    from llumnix.cluster import launcher, preflight

    if (keyword := serve_help.asked_for(words)) is not None:
        serve_help.show(keyword)
        return 0
    arguments = flags.parse_serve(words)
    preflight.check(arguments)
    return launcher.serve(arguments, arguments.model or str(tiny_model.ensure()))


def _in_module(name: str, module: str) -> Main:
    """A command whose module has `add_arguments(parser)` and `run(values) -> int`."""

    def run(words: list[str]) -> int:
        command = import_module(module)
        parser = _parser(name, command.__doc__ or "")
        command.add_arguments(parser)
        code: int = command.run(parser.parse_args(words))
        return code

    return run


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    from llumnix.flags import Parser

    return Parser(prog=f"llumnix {name}", description=description.strip().partition("\n\n")[0])


def _ask_server(name: str) -> Main:
    """A command that talks to a running server."""

    def run(words: list[str]) -> int:
        command = SERVER_COMMANDS[name]
        parser = _parser(name, command.sentence)
        command.add_flags(parser)
        add_server_flags(parser)
        values = parser.parse_args(words)
        from llumnix.client import AdminClient

        client = AdminClient(values.url, values.api_key)
        try:
            command.run(client, values)
        finally:
            client.close()
        return 0

    return run


def _doctor(words: list[str]) -> int:
    from llumnix.doctor import run

    return run(words)


COMMANDS: dict[str, tuple[str, Main]] = {
    "serve": ("Serve a model on several engines behind one OpenAI-compatible address.", _serve),
    "bench": ("Load a running server and measure it.", _in_module("bench", "llumnix.bench.cli")),
    "simulate": ("The same, simulated: policies in virtual time.", _in_module("simulate", "llumnix.sim.cli")),
    "reproduce": ("Draw a figure of the paper.", _in_module("reproduce", "llumnix.paper.cli")),
    "profile": ("Fit a cost model to an engine, for the simulator.", _in_module("profile", "llumnix.sim.profiles.cli")),
    **{name: (command.sentence, _ask_server(name)) for name, command in SERVER_COMMANDS.items()},
    "doctor": ("Check this machine, and say what to do.", _doctor),
}
