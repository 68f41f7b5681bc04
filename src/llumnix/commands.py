"""The commands that ask a running server, each with its flags: `run(client, values)`.

What they need beyond this is imported when they run, so that `llumnix --help` is quick.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llumnix.errors import UsageError
from llumnix.plain import say
from llumnix.remote import an_id

_LONGEST_DRAIN_S = 3600.0
"""So long a drain is waited for, beyond the time that it is given."""
_MOST_INSTANCES = 4096


@dataclass(frozen=True, slots=True)
class ServerCommand:
    sentence: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Any, argparse.Namespace], None]
    """Gets an `AdminClient`."""


def _print_json(answer: object) -> None:
    import msgspec

    print(json.dumps(msgspec.to_builtins(answer), indent=2))


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="Print the server's answer as it is.")


def _number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} to {most}")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


# looking


def _status_flags(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)
    parser.add_argument("--watch", action="store_true", help="Show it again and again, until Ctrl-C.")
    parser.add_argument(
        "--interval-s", type=_seconds, metavar="X", help="With --watch, seconds between two looks. Default: 1."
    )


def _status(client: Any, values: argparse.Namespace) -> None:
    from llumnix.status_table import print_status, watch_status

    if values.watch and values.json:
        raise UsageError("--watch and --json do not go together.")
    if values.interval_s is not None and not values.watch:
        raise UsageError("--interval-s is for --watch.")
    if values.watch:
        watch_status(client.status, 1.0 if values.interval_s is None else max(0.1, values.interval_s))
    elif values.json:
        _print_json(client.status())
    else:
        print_status(client.status())


def _requests_flags(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)
    parser.add_argument("--instance", metavar="INSTANCE", type=an_id, help="Only those on this instance.")
    parser.add_argument("--state", choices=("running", "waiting"), help="Only those in this state.")


def _requests(client: Any, values: argparse.Namespace) -> None:
    from llumnix.operations import requests_where

    rows = requests_where(client, values.instance, values.state)
    if values.json:
        _print_json({"requests": rows})
        return
    from llumnix.status_table import print_requests

    print_requests(rows)


def _moves_flags(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)
    parser.add_argument(
        "--limit",
        type=_number(1, 100_000),
        default=20,
        metavar="N",
        help="At most so many, the last ones. Default: 20.",
    )


def _moves(client: Any, values: argparse.Namespace) -> None:
    rows = client.moves(values.limit)
    if values.json:
        _print_json({"migrations": rows})
        return
    from llumnix.status_table import print_moves

    print_moves(rows)


def _classes(client: Any, values: argparse.Namespace) -> None:
    rows = client.classes()
    if values.json:
        _print_json({"classes": rows})
        return
    from llumnix.status_table import print_classes

    print_classes(rows)


def _top_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interval-s", type=_seconds, default=1.0, metavar="X", help="Seconds between two looks. Default: 1."
    )


def _top(client: Any, values: argparse.Namespace) -> None:
    from llumnix.top import show

    show(client, max(0.1, values.interval_s))


def _explain_flags(parser: argparse.ArgumentParser) -> None:
    from llumnix.explain import add_flags

    add_flags(parser)


def _explain(client: Any, values: argparse.Namespace) -> None:
    from llumnix.explain import run

    run(client, values)


# moving


def _migrate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("request", metavar="REQUEST", type=an_id, help="Id of the request, as its client was given it.")
    parser.add_argument(
        "target", metavar="TARGET", type=an_id, nargs="?", help="Instance to move it to. Default: where it had best go."
    )


def _migrate(client: Any, values: argparse.Namespace) -> None:
    moved = client.migrate(values.request, values.target)
    downtime = "downtime not measured" if moved.downtime_ms is None else f"downtime {moved.downtime_ms:.1f} ms"
    say(
        f"moved {values.request} from {moved.source} to {moved.target}: {downtime} "
        f"(hand-over {moved.handover_ms:.1f} ms, {moved.stages} stages, {moved.bytes:,} bytes)"
    )


def _drain_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instance", metavar="INSTANCE", type=an_id)
    parser.add_argument("--keep", action="store_true", help="Leave it running, empty, until `llumnix undrain`.")
    parser.add_argument("--wait", action="store_true", help="Wait until it is empty, and report.")
    parser.add_argument(
        "--timeout-s",
        type=_seconds,
        metavar="X",
        help="Seconds after which what is left is replayed elsewhere. Default: the server's.",
    )
    parser.add_argument("--force", action="store_true", help="Drain it even if no other instance takes requests.")


def _drain(client: Any, values: argparse.Namespace) -> None:
    client.drain(values.instance, values.keep, values.timeout_s, force=values.force)
    if not values.wait:
        say(f"{values.instance} is being emptied" + ("" if values.keep else " and then stops"))
        return
    from llumnix.operations import drain_sentence, wait_for_drain

    longest_s = (values.timeout_s or 0.0) + _LONGEST_DRAIN_S
    say(drain_sentence(wait_for_drain(client, values.instance, longest_s)))


def _undrain_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instance", metavar="INSTANCE", type=an_id)


def _undrain(client: Any, values: argparse.Namespace) -> None:
    client.undrain(values.instance)
    say(f"{values.instance} takes requests again")


def _role_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instance", metavar="INSTANCE", type=an_id)
    parser.add_argument("role", choices=("prefill", "decode", "mixed"), help="Prompts, tokens, or both.")


def _role(client: Any, values: argparse.Namespace) -> None:
    from llumnix.types import Role

    client.give_role(values.instance, Role(values.role))
    say(f"{values.instance} is {values.role} from now on")


# how many there are


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="Wait until it is so.")
    parser.add_argument(
        "--timeout-s", type=_seconds, metavar="X", help="With --wait, seconds to wait at most. Default: 600."
    )


def _wait_s(values: argparse.Namespace) -> float | None:
    """How long to wait; None: not at all."""
    if not values.wait:
        if values.timeout_s is not None:
            raise UsageError("--timeout-s is for --wait.")
        return None
    return 600.0 if values.timeout_s is None else float(values.timeout_s)


def _start_flags(parser: argparse.ArgumentParser) -> None:
    count = _number(1, _MOST_INSTANCES)
    parser.add_argument("count", metavar="N", type=count, nargs="?", default=1, help="How many more. Default: 1.")
    parser.add_argument(
        "--replaces", metavar="INSTANCE", type=an_id, help="Begin with the role of this instance, which is to go."
    )
    _add_wait(parser)


def _start(client: Any, values: argparse.Namespace) -> None:
    from llumnix.operations import start

    if values.replaces is not None and values.count != 1:
        raise UsageError("--replaces is for one instance.")
    start(client, values.count, say, _wait_s(values), values.replaces)


def _scale_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("count", metavar="N", type=_number(1, _MOST_INSTANCES), help="How many instances are to serve.")
    _add_wait(parser)


def _scale(client: Any, values: argparse.Namespace) -> None:
    from llumnix.operations import scale

    scale(client, values.count, say, _wait_s(values))


def _restart_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rolling", action="store_true", help="One instance after the other; requests move and go on.")
    parser.add_argument(
        "--timeout-s", type=_seconds, default=600.0, metavar="X", help="Seconds one step may take. Default: 600."
    )


def _restart(client: Any, values: argparse.Namespace) -> None:
    from llumnix.operations import restart_rolling

    if not values.rolling:
        raise UsageError("Say `llumnix restart --rolling`; to stop the whole server, end `llumnix serve`.")
    restart_rolling(client, say, values.timeout_s)


SERVER_COMMANDS: dict[str, ServerCommand] = {
    "status": ServerCommand("Show the instances of a running server and their load.", _status_flags, _status),
    "requests": ServerCommand("List the requests that run or wait, and where.", _requests_flags, _requests),
    "moves": ServerCommand("List the last moves, with reason and outcome.", _moves_flags, _moves),
    "classes": ServerCommand("Show who waits, runs and was refused, by class and tenant.", _add_json, _classes),
    "top": ServerCommand("Watch instances, requests and moves on the whole screen.", _top_flags, _top),
    "explain": ServerCommand("Say what happened to a request or an instance, and why.", _explain_flags, _explain),
    "migrate": ServerCommand("Move one request to another instance.", _migrate_flags, _migrate),
    "drain": ServerCommand("Empty an instance by migration, then stop it.", _drain_flags, _drain),
    "undrain": ServerCommand("Let a draining or drained instance take requests again.", _undrain_flags, _undrain),
    "role": ServerCommand("Prefer an instance for prompts, for tokens, or for both.", _role_flags, _role),
    "start": ServerCommand("Start more instances.", _start_flags, _start),
    "scale": ServerCommand("Start or drain instances until so many serve.", _scale_flags, _scale),
    "restart": ServerCommand("Replace every instance without losing a request.", _restart_flags, _restart),
}
