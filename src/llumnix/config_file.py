"""`--config FILE.yaml`: flags of ours and of vLLM's in a file, which those of the command line overrule.

Read here rather than by vLLM, so that a flag means the same wherever it stands. Told apart by itself: a flag at the
file's end takes nothing off the command line. The rules are vLLM's: a list is several values (or JSON, where the flag
takes one), a mapping JSON (in a list, too, which vLLM cannot read), `true` a flag without a value, `false` its `--no-`
form where it has one. A list for a flag of ours is its values with commas between.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llumnix.command_line import Vocabulary, Words, tell_apart
from llumnix.errors import UsageError, in_a_clause
from llumnix.paths import expanded

_FLAG = "--config"
_REPEATED = "--middleware"
"""The one flag of vLLM's that is given several times for several values."""


def tell_apart_with_file(words: Sequence[str], known: Vocabulary) -> Words:
    """The words, and before them what the file says that they name. Raises UsageError when it cannot be read."""
    path, before, behind = _take_path(list(words))
    parts = [tell_apart(part, known) for part in (before, behind)]  # a flag before it has no values behind it
    if path is not None:
        parts.insert(0, tell_apart(_words_of(path, known), known))
    told = Words()
    for part in parts:
        told.ours += part.ours
        told.engine += part.engine
        told.free += part.free
    return told


def _take_path(words: list[str]) -> tuple[str | None, list[str], list[str]]:
    """What `--config` names, and the words before and behind it."""
    end = words.index("--") if "--" in words else len(words)
    places = [place for place, word in enumerate(words[:end]) if word.partition("=")[0] == _FLAG]
    if not places:
        return None, words, []
    if len(places) > 1:
        raise UsageError("--config may be given once.")
    place = places[0]
    _, equals, path = words[place].partition("=")
    if equals:
        return path, words[:place], words[place + 1 :]
    if place + 1 == end:
        raise UsageError("--config needs a file.")
    return words[place + 1], words[:place], words[place + 2 :]


def _words_of(path: str, known: Vocabulary) -> list[str]:
    content = _load(path)
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold flags and their values, such as `max-model-len: 8192`.")
    words: list[str] = []
    for key, value in content.items():
        flag = "--" + str(key).lstrip("-").replace("_", "-")
        if flag == _FLAG:
            raise UsageError(f"{path} cannot name another --config.")
        words += _words_for(flag, value, known)
    return words


def _words_for(flag: str, value: Any, known: Vocabulary) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        if known.ours.get(flag):
            return [f"{flag}={'on' if value else 'off'}"]  # YAML reads on and off as true and false
        negative = f"--no-{flag[2:]}"
        return [flag] if value else [negative] if negative in known.names else []
    if isinstance(value, list) and flag in known.theirs and known.theirs[flag].takes == "many":
        return [flag, *(_word(flag, item) for item in value)] if value else []
    if isinstance(value, list) and flag in known.ours:
        return [f"{flag}={','.join(map(str, value))}"]
    if isinstance(value, list) and flag == _REPEATED:
        return [f"{flag}={item}" for item in value]
    return [f"{flag}={_word(flag, value)}"]


def _word(flag: str, value: Any) -> str:
    return _as_json(flag, value) if isinstance(value, dict | list) else str(value)


def _as_json(flag: str, value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:  # a date, or a mapping that is in itself
        raise UsageError(f"{flag} of the config file cannot be written as JSON: {error}.") from error


def _load(path: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(expanded(path).read_text())
    except OSError as error:
        raise UsageError(f"The config file {path} cannot be read: {in_a_clause(error)}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not text, or a 13th month
        gist = " ".join(str(error).split())
        raise UsageError(f"The config file {path} is not YAML: {gist}.") from error
