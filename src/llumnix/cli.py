"""`llumnix`: finds the command, parses its flags, calls it. Nothing else is imported until a command needs it.

Exit codes: 0 done; 1 it failed, or the server refused; 2 bad use, said in one sentence on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from llumnix.errors import LlumnixError, UsageError

Run = Callable[[list[str]], int]

_LONGEST_DRAIN_S = 3600.0


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
        from importlib.metadata import version

        print(version("llumnix"))
        return 0
    if words[0] not in COMMANDS:
        raise UsageError(f"There is no command {words[0]!r}; `llumnix --help` lists them.")
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
    from llumnix import flags, tiny_model
    from llumnix.cluster import launcher, preflight

    arguments = flags.parse_serve(words)
    preflight.check(arguments)
    in_config_file = arguments.model is None and flags.has_flag(arguments.engine_flags, "--config")
    model = arguments.model or ("" if in_config_file else str(tiny_model.ensure()))
    return launcher.serve(arguments, model)


def _in_module(name: str, module: str) -> Run:
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


def _ask_server(name: str, add: Callable[[argparse.ArgumentParser], None], run: Callable[[Any, Any], None]) -> Run:
    """A command that talks to a running server: `run(client, values)`."""

    def command(words: list[str]) -> int:
        from llumnix.client import DEFAULT_URL, AdminClient

        parser = _parser(name, COMMANDS[name][0])
        add(parser)
        url = os.environ.get("LLUMNIX_URL", DEFAULT_URL)
        key = os.environ.get("LLUMNIX_API_KEY") or os.environ.get("VLLM_API_KEY")
        parser.add_argument("--url", default=url, help=f"Address of the server, or LLUMNIX_URL. Now: {url}.")
        parser.add_argument("--api-key", default=key, help="Key of the server, or LLUMNIX_API_KEY, or VLLM_API_KEY.")
        values = parser.parse_args(words)
        client = AdminClient(values.url, values.api_key)
        try:
            run(client, values)
        finally:
            client.close()
        return 0

    return command


def _status_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="Print the server's answer as it is.")


def _status(client: Any, values: argparse.Namespace) -> None:
    status = client.status()
    if values.json:
        print(json.dumps(status, indent=2))
    else:
        from llumnix.status_table import print_scaling, print_status

        print_status(status)
        if status.get("scaling") is not None:
            print_scaling(status["scaling"])


def _migrate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("request", metavar="REQUEST", help="Id of the request, as its client was given it.")
    parser.add_argument("target", metavar="TARGET", help="Instance to move it to.")


def _migrate(client: Any, values: argparse.Namespace) -> None:
    moved = client.migrate(values.request, values.target)
    print(
        f"moved {values.request} from {moved['source']} to {moved['target']}: {moved['stages']} stages, "
        f"{moved['bytes']} bytes, hand-over {moved['handover_ms']:.1f} ms"
    )


def _drain_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instance", metavar="INSTANCE")
    parser.add_argument("--keep", action="store_true", help="Leave it running, empty, instead of stopping it.")
    parser.add_argument("--wait", action="store_true", help="Wait until it is empty, and report.")
    parser.add_argument(
        "--timeout-s", type=float, help="Seconds after which what is left is replayed elsewhere. Default: the server's."
    )


def _drain(client: Any, values: argparse.Namespace) -> None:
    client.drain(values.instance, values.keep, values.timeout_s)
    if not values.wait:
        print(f"{values.instance} is being emptied" + ("" if values.keep else " and then stops"))
        return
    from llumnix.client import drain_sentence, wait_for_drain

    print(drain_sentence(wait_for_drain(client, values.instance, _LONGEST_DRAIN_S)))


def _restart_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rolling", action="store_true", help="One instance after the other; requests move and go on.")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="Seconds one step may take. Default: 600.")


def _restart(client: Any, values: argparse.Namespace) -> None:
    from llumnix.client import restart_rolling

    if not values.rolling:
        raise UsageError("Say `llumnix restart --rolling`; to stop the whole server, end `llumnix serve`.")
    restart_rolling(client, lambda line: print(line, flush=True), values.timeout_s)


def _doctor(words: list[str]) -> int:
    from llumnix.doctor import run

    return run(words)


COMMANDS: dict[str, tuple[str, Run]] = {
    "serve": ("Serve a model on several engines behind one OpenAI-compatible address.", _serve),
    "bench": ("Load a running server and measure it.", _in_module("bench", "llumnix.bench.cli")),
    "simulate": ("The same, simulated: policies in virtual time.", _in_module("simulate", "llumnix.sim.cli")),
    "reproduce": ("Draw a figure of the paper.", _in_module("reproduce", "llumnix.sim.reproduce_cli")),
    "profile": ("Fit a cost model to an engine, for the simulator.", _in_module("profile", "llumnix.sim.profile_cli")),
    "status": ("Show the instances of a running server and their load.", _ask_server("status", _status_flags, _status)),
    "migrate": ("Move one request to another instance.", _ask_server("migrate", _migrate_flags, _migrate)),
    "drain": ("Empty an instance by migration, then stop it.", _ask_server("drain", _drain_flags, _drain)),
    "restart": ("Replace every instance without losing a request.", _ask_server("restart", _restart_flags, _restart)),
    "doctor": ("Check this machine, and say what to do.", _doctor),
}
