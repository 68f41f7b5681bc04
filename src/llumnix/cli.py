"""`llumnix`: finds the command, parses its flags, calls it. Nothing else is imported until a command needs it.

Exit codes: 0 done; 1 it failed, or the server refused; 2 bad use, said in one sentence on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from llumnix import __version__
from llumnix.commands import SERVER_COMMANDS, ServerCommand
from llumnix.errors import LlumnixError, ServerRefused, UsageError
from llumnix.plain import plain
from llumnix.remote import add_server_flags


@dataclass(frozen=True, slots=True)
class Command:
    sentence: str
    parser: Callable[[], argparse.ArgumentParser]
    """Made when it is asked for: what it needs is imported then."""
    run: Callable[[list[str]], int]
    """Gets the words behind the command, returns the exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    _open_what_is_closed()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except (UsageError, ServerRefused) as error:
        print(plain(f"llumnix: {error}"), file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except LlumnixError as error:  # ours, of many lines
        print(f"llumnix: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `llumnix … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _open_what_is_closed() -> None:
    """After `llumnix … >&-` the next file or socket would get descriptor 1, and whoever writes there, a child as well,
    would write into that."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one's
            os.set_inheritable(nowhere, True)
            setattr(sys, name, os.fdopen(nowhere, mode, closefd=False))


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
    return COMMANDS[words[0]].run(words[1:])


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.sentence}" for name, command in COMMANDS.items()]
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


def _serve_parser() -> argparse.ArgumentParser:
    from llumnix.flags import serve_parser

    return serve_parser()


def _serve(words: list[str]) -> int:
    from llumnix import flags, serve_help, tiny_model
    from llumnix.cluster import launcher, preflight

    if (keyword := serve_help.asked_for(words)) is not None:
        serve_help.show(keyword)
        return 0
    arguments = flags.parse_serve(words)
    most = preflight.check(arguments)
    return launcher.serve(arguments, arguments.model or str(tiny_model.ensure()), most)


def _doctor_parser() -> argparse.ArgumentParser:
    """For who asks for help: it understands what `serve` does."""
    made = _parser("doctor", "Checks whether this machine can serve so, and says what to do if it cannot.")
    made.usage = "llumnix doctor [MODEL] [any flag of `llumnix serve`]"
    return made


def _doctor(words: list[str]) -> int:
    from llumnix import doctor
    from llumnix.flags import parse_serve

    if {"-h", "--help"} & {*words}:
        _doctor_parser().parse_args(["--help"])  # exits
    return doctor.run(parse_serve(words))


def _in_module(name: str, sentence: str, module: str) -> Command:
    """A command whose module has `add_arguments(parser)` and `run(values) -> int`."""

    def parser() -> argparse.ArgumentParser:
        command = import_module(module)
        made = _parser(name, command.__doc__ or "")
        command.add_arguments(made)
        return made

    def run(words: list[str]) -> int:
        values = parser().parse_args(words)
        code: int = import_module(module).run(values)
        return code

    return Command(sentence, parser, run)


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    from llumnix.config_flags import Parser

    return Parser(prog=f"llumnix {name}", description=description.strip().partition("\n\n")[0])


def _ask_server(name: str, asking: ServerCommand) -> Command:
    """A command that talks to a running server."""

    def parser() -> argparse.ArgumentParser:
        made = _parser(name, asking.sentence)
        asking.add_flags(made)
        add_server_flags(made)
        return made

    def run(words: list[str]) -> int:
        values = parser().parse_args(words)
        from llumnix.client import AdminClient

        client = AdminClient(values.url, values.api_key)
        try:
            asking.run(client, values)
        finally:
            client.close()
        return 0

    return Command(asking.sentence, parser, run)


COMMANDS: dict[str, Command] = {
    "serve": Command("Serve a model on several engines behind one OpenAI-compatible address.", _serve_parser, _serve),
    "bench": _in_module("bench", "Load a running server and measure it.", "llumnix.bench.cli"),
    "simulate": _in_module("simulate", "The same, simulated: policies in virtual time.", "llumnix.sim.cli"),
    "reproduce": _in_module("reproduce", "Draw a figure of the paper.", "llumnix.paper.cli"),
    "profile": _in_module("profile", "Fit a cost model to an engine, for the simulator.", "llumnix.sim.profiles.cli"),
    "record": _in_module("record", "Export what `serve --record` wrote down.", "llumnix.record.cli"),
    "whatif": _in_module("whatif", "Predict how a recorded run would have gone otherwise.", "llumnix.whatif.cli"),
    **{name: _ask_server(name, asking) for name, asking in SERVER_COMMANDS.items()},
    "doctor": Command("Check this machine for what serve is to be told, and say what to do.", _doctor_parser, _doctor),
    "completion": _in_module("completion", "Print what completes command lines in a shell.", "llumnix.shell"),
    "man": _in_module("man", "Print the manual page.", "llumnix.manual"),
}
