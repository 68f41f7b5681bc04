"""The words of `llumnix serve`, told apart: our flags, vLLM's, and what is neither (the model's name).

As vLLM's own parser reads them: underscores are dashes, a flag may be cut short while it stays unambiguous,
`--config.field value` is a field of a flag's JSON, `-O2` the optimization level.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llumnix.errors import UsageError
from llumnix.vllm_words import VllmFlag, fits

_NEGATIVE_NUMBER = re.compile(r"-\d+(\.\d*)?|-\.\d+")
_OPTIMIZATION = re.compile(r"-O=?(\w+)")


@dataclass(slots=True)
class Words:
    ours: list[str] = field(default_factory=list)
    engine: list[str] = field(default_factory=list)
    """Flags of vLLM's by their long names, each followed by its values, in the order given."""
    free: list[str] = field(default_factory=list)
    """Neither flags nor values of one."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    ours: Mapping[str, bool]
    """Flags of ours, and whether each takes a value."""
    theirs: Mapping[str, VllmFlag]
    complete: bool
    """Whether vLLM has no other flags than `theirs`: then an unknown one is a mistake, which is told at once."""

    @property
    def names(self) -> list[str]:
        """Every spelling."""
        switches = [name[2:] for name, flag in self.theirs.items() if flag.takes == "switch" and name[:2] == "--"]
        return [*self.ours, *self.theirs, *(f"--no-{name}" for name in switches)]


def tell_apart(words: Sequence[str], known: Vocabulary) -> Words:
    """After `--` no word is a flag. Raises UsageError for a flag that nobody knows, or that lacks its value, or has one
    that it does not take."""
    told = Words()
    end = words.index("--") if "--" in words else len(words)
    rest = [_dashes(word) for word in words[:end]]
    while rest:
        word = rest.pop(0)
        if _is_value(word):
            told.free.append(word)
            continue
        name, equals, value = word.partition("=")
        name, dot, fields = name.partition(".")
        if name in known.ours and not dot:
            told.ours += [word, *_values(name, equals, "one" if known.ours[name] else "nothing", rest)]
            continue
        name, takes = _look_up(name, known)
        if dot and takes != "unknown":
            takes = "one"
        told.engine += [name + dot + fields + equals + value, *_values(name, equals, takes, rest)]
    told.free += words[end + 1 :]
    return told


def _look_up(name: str, known: Vocabulary) -> tuple[str, str]:
    """The long name of a flag of vLLM's, and what it takes."""
    if name not in known.theirs and name.startswith("--"):
        name = _written_out(name, known)
    if name.startswith("--no-") and name not in known.theirs:
        positive = known.theirs.get("--" + name.removeprefix("--no-"))
        if positive is not None and positive.takes == "switch":
            return f"--no-{positive.name[2:]}", "nothing"
    flag = known.theirs.get(name)
    if flag is not None:
        return flag.name, flag.takes.replace("switch", "nothing")
    if known.complete:
        raise UsageError(f"There is no flag {name}; {_suggestion(name, known.names)}")
    return name, "unknown"


def _written_out(name: str, known: Vocabulary) -> str:
    """A name that was cut short, whole. Ours are not to be cut short: they would hide vLLM's."""
    if name in known.names:
        return name
    longer = sorted({other for other in known.names if other.startswith(name) and other not in known.ours})
    if len(longer) > 1 and known.complete:
        raise UsageError(f"{name} could be {' or '.join(longer[:4])}: write it out.")
    return longer[0] if len(longer) == 1 else name


def _suggestion(name: str, names: Iterable[str]) -> str:
    close = closest(name, names)
    return f"did you mean {close}?" if close else "`llumnix serve --help=all` lists them."


def closest(word: str, words: Iterable[str]) -> str | None:
    """What was probably meant; None if nothing is like it."""
    return next(iter(difflib.get_close_matches(word, list(words), n=1, cutoff=0.7)), None)


def refuse_wrong_values(engine_flags: Sequence[str], known: Vocabulary) -> None:
    """What vLLM's own parser would say after an import of seconds. Raises UsageError."""
    flag = None
    for word in engine_flags:
        given: str | None = word
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            flag, given = known.theirs.get(name), value if equals else None
        if flag is not None and given is not None and not fits(flag, given):
            raise UsageError(_why_wrong(flag, given))


def _why_wrong(flag: VllmFlag, value: str) -> str:
    if flag.values[0].startswith(("int", "float")):
        return f"{flag.name} must be a {'whole ' if flag.values[0].startswith('int') else ''}number, not {value!r}."
    meant = closest(value, flag.values)
    return f"{flag.name} cannot be {value!r}; " + (
        f"did you mean {meant}?" if meant else f"it may be {', '.join(flag.values)}."
    )


def _values(name: str, equals: str, takes: str, rest: list[str]) -> list[str]:
    """Takes a flag's values off the words that follow it."""
    if equals:
        if takes == "nothing":
            raise UsageError(f"{name} takes no value.")
        return []
    most = {"nothing": 0, "one": 1, "optional": 1}.get(takes, len(rest))
    values: list[str] = []
    while rest and len(values) < most and _is_value(rest[0]):
        values.append(rest.pop(0))
    if not values and takes in ("one", "many"):
        raise UsageError(f"{name} needs a value.")
    return values


def _is_value(word: str) -> bool:
    """Whether argparse would take it for a value, not for a flag."""
    if not word.startswith("-") or word == "-" or _NEGATIVE_NUMBER.fullmatch(word):
        return True
    return " " in word.partition("=")[0]


def _dashes(word: str) -> str:
    """`--a_b.c_d=e_f` with dashes in the flag's own name alone; `-O2` in full."""
    if optimization := _OPTIMIZATION.fullmatch(word):
        return f"--optimization-level={optimization[1]}"
    if not word.startswith("--") or " " in word.partition("=")[0]:
        return word
    own = re.split(r"[.=]", word, maxsplit=1)[0]
    return own.replace("_", "-") + word[len(own) :]
