"""Prints what completes command lines of `llumnix` in a shell: `source <(llumnix completion bash)`.

The shell asks `llumnix completion words` for each word, so flags and values are those of the version that is installed,
and ids of instances and requests those of the server that runs.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from llumnix.errors import LlumnixError

BASH = """_llumnix() {
    local words word current IFS=$' \\t\\n'
    read -ra words <<< "${COMP_LINE:0:COMP_POINT}x"  # and not COMP_WORDS, which fall apart at = and :
    current=${words[-1]%x}
    words[-1]=$current
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <(llumnix completion words -- "${words[@]:1}" 2>/dev/null)
    COMPREPLY=("${COMPREPLY[@]#"${current%"${current##*[=:]}"}"}")  # which bash leaves as it is
}
complete -o bashdefault -o default -F _llumnix llumnix
"""

_PATIENCE_S = 1.0
_INSTANCES, _REQUESTS = ("INSTANCE", "TARGET"), ("REQUEST",)
_SAYS_ITSELF = re.compile(r"[\w@%+:,./][\w@%+=:,./-]*", re.ASCII)
"""A word that no shell reads as anything else, and no command as a flag. What is completed, the shell runs as if it had
been typed; and clients name their requests, `$(reboot)` if they like."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "words"), help="The shell; or `words`, for its script to ask.")
    parser.add_argument(
        "line", nargs=argparse.REMAINDER, metavar="WORD", help="With `words`: what the line says so far."
    )


def run(values: argparse.Namespace) -> int:
    if values.shell == "bash":
        print(BASH, end="")
    else:
        first, *line = values.line or ["--"]
        for word in candidates(line if first == "--" else values.line):
            print(word)
    return 0


def candidates(line: Sequence[str]) -> list[str]:
    """What may stand in place of the last word, which is not whole yet. `line` begins behind `llumnix`."""
    from llumnix.cli import COMMANDS

    *before, current = line or [""]
    if before[:1] == ["doctor"]:  # which takes the same words
        before[0] = "serve"
    flag, equals, value = current.partition("=")
    if equals:  # as if it were two words
        before, current = [*before, flag], value
    if not before:
        found: Iterable[str] = [*COMMANDS, "--help", "--version"]
    elif before[0] not in COMMANDS:
        found = ()
    else:
        found = _of_command(COMMANDS[before[0]].parser(), before, current)
    return sorted({flag + equals + word if equals else word for word in found if word.startswith(current)})


def _of_command(parser: argparse.ArgumentParser, before: Sequence[str], current: str) -> Iterable[str]:
    flags = {name: action for action in parser._actions for name in action.option_strings}
    flag = flags.get(before[-1])
    if flag is not None and flag.nargs != 0:
        return _values(flag, before)
    if before[0] == "serve":
        return _of_serve(parser, before[-1], current)
    if current.startswith("-"):
        return [name for name, action in flags.items() if action.help != argparse.SUPPRESS]
    take_one = {name for name, action in flags.items() if action.nargs != 0}
    taken = sum(not word.startswith("-") and last not in take_one for last, word in pairwise(before))
    places = [action for action in parser._actions if not action.option_strings]
    return _values(places[taken], before) if taken < len(places) else ()


def _of_serve(parser: argparse.ArgumentParser, last: str, current: str) -> Iterable[str]:
    """vLLM's flags, too, from our table of them: vLLM takes seconds to be imported."""
    from llumnix.flags import DEFAULT_ENGINE, vocabulary

    known = vocabulary(parser, DEFAULT_ENGINE)
    theirs = known.theirs.get(last)
    if theirs is not None and theirs.values and theirs.takes == "one":
        return [value for value in theirs.values if not value.startswith(("int", "float"))]
    return known.names if current.startswith("-") else ()


def _values(action: argparse.Action, before: Sequence[str]) -> Iterable[str]:
    metavar = str(action.metavar or "")
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    if metavar.startswith("{"):
        return metavar.strip("{}").split(",")
    return _ids(metavar, before) if metavar in (*_INSTANCES, *_REQUESTS) else ()


def _ids(metavar: str, before: Sequence[str]) -> Iterable[str]:
    """Of the server that runs, which the line may name; none where none answers at once. Those that a shell would read
    as more than a word are left out."""
    import httpx

    from llumnix.client import AdminClient
    from llumnix.config_flags import Parser
    from llumnix.remote import add_server_flags

    asking = Parser()
    add_server_flags(asking)
    try:
        where, _ = asking.parse_known_args(before)
        client = AdminClient(where.url, where.api_key, timeout_s=_PATIENCE_S)
        ids = [row.id for row in (client.instances() if metavar in _INSTANCES else client.requests())]
        return [one for one in ids if _SAYS_ITSELF.fullmatch(one)]
    except (LlumnixError, httpx.HTTPError):
        return ()
