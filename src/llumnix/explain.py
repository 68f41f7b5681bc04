"""`llumnix explain`: what a server, or a decision log, says of a request, an instance, or the size of the cluster."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from typing import Any, assert_never

import msgspec

from llumnix.api.bodies import JournalAnswer, StoryAnswer, WhyNotAnswer
from llumnix.decision_log import read_log
from llumnix.errors import ServerSilent, UsageError
from llumnix.journal.entries import JournalEntry
from llumnix.journal.journal import EntryFilter
from llumnix.journal.story import stories_in
from llumnix.journal.words import sentence, story_lines
from llumnix.paths import a_path
from llumnix.plain import say
from llumnix.remote import an_id
from llumnix.types import InstanceId, by_number

_ABOUT_SIZE = ("scale", "drain", "instance")
_EARLIEST_UNIX_S = 1e9
"""A time before is one of a simulated run."""
_USUAL_ENTRIES, _MOST_ENTRIES = 100, 1000
_ANY = "*"
_MOST_NAMED = 8
_INSTANCE = re.compile(r"i\d+")

Answered = StoryAnswer | JournalAnswer | WhyNotAnswer


def add_flags(parser: argparse.ArgumentParser) -> None:
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "request",
        metavar="REQUEST",
        type=an_id,
        nargs="?",
        help="What happened to a request, by its client's id or its beginning.",
    )
    asked.add_argument(
        "--why-not",
        metavar="REQUEST",
        type=an_id,
        nargs="?",
        const=_ANY,
        help="Why a request does not move; of an instance, why none leaves it; of neither, why nothing moves at all.",
    )
    asked.add_argument("--instance", metavar="INSTANCE", type=an_id, help="What happened to an instance, and on it.")
    asked.add_argument("--scaling", action="store_true", help="Why there are as many instances as there are.")
    parser.add_argument(
        "--log",
        metavar="PATH",
        type=a_path,
        help="Ask no server, but what it, or `simulate`, wrote with --decision-log.",
    )
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help=f"With --instance or --scaling, at most so many entries. Default: {_USUAL_ENTRIES}.",
    )
    parser.add_argument("--json", action="store_true", help="Print the answer as it is.")


def run(client: Any, values: argparse.Namespace) -> None:
    """`client`: an `AdminClient`. Raises UsageError, and what that raises."""
    if values.limit is None:
        values.limit = _USUAL_ENTRIES
    elif values.request or values.why_not is not None:
        raise UsageError("--limit is for --instance and --scaling.")
    if not 1 <= values.limit <= _MOST_ENTRIES:
        raise UsageError(f"--limit must be between 1 and {_MOST_ENTRIES}, not {values.limit}.")
    if values.log is not None and values.why_not is not None:
        raise UsageError("--why-not is about what is now: a log does not know it.")
    answer = _ask(client, values) if values.log is None else _look_up(values)
    if values.json:
        print(json.dumps(msgspec.to_builtins(answer), indent=2))
    else:
        for line in _lines(client, values, answer):
            say(line)


def _ask(client: Any, values: argparse.Namespace) -> Answered:
    if values.why_not is not None:
        whys: WhyNotAnswer = client.why_not()
        if values.why_not in (_ANY, *whys.instances):
            return whys
        if _INSTANCE.fullmatch(values.why_not):
            raise UsageError(f"There is no instance {values.why_not!r} that takes requests.")
    if request := values.request or values.why_not:
        story: StoryAnswer = client.story(request)
        return story
    kinds = _ABOUT_SIZE if values.scaling else ()
    journal: JournalAnswer = client.journal(limit=values.limit, kinds=kinds, instance=values.instance)
    return journal


def _look_up(values: argparse.Namespace) -> StoryAnswer | JournalAnswer:
    entries = read_log(values.log)
    if values.request:
        stories = stories_in(entries, values.request)
        if not stories:
            raise UsageError(f"{values.log} has nothing about a request {values.request}.")
        if len({story.request for story in stories}) > 1:
            raise UsageError(f"{values.request!r} is the beginning of several ids; write more of it.")
        return StoryAnswer(stories=stories, stays={})
    instance = None if values.instance is None else InstanceId(values.instance)
    wanted = EntryFilter(kinds=_ABOUT_SIZE if values.scaling else (), instance=instance)
    found = [entry for entry in entries if wanted.takes(entry)]
    if instance is not None and not found:
        known = sorted({entry.instance for entry in entries if entry.instance is not None}, key=by_number)
        others = f"; there are {', '.join(known[:_MOST_NAMED])}{' …' * (len(known) > _MOST_NAMED)}" if known else ""
        raise UsageError(f"{values.log} has nothing about an instance {instance}{others}.")
    return JournalAnswer(entries=found[-values.limit :], cursor="", lost=0)


def _lines(client: Any, values: argparse.Namespace, answer: Answered) -> Iterator[str]:
    match answer:
        case JournalAnswer():
            yield from _journal_lines(client, values, answer)
        case StoryAnswer():
            yield from _story_lines(values, answer)
        case WhyNotAnswer():
            yield from _why_not_lines(values, answer)
        case _:
            assert_never(answer)


def _journal_lines(client: Any, values: argparse.Namespace, answer: JournalAnswer) -> Iterator[str]:
    for entry in answer.entries:
        yield f"{_when(entry)}  {f'{entry.request}: ' if entry.request else ''}{sentence(entry)}"
    if values.scaling and values.log is None:
        yield f"now: {_size_now(client)}"
    elif not answer.entries:
        yield "nothing is known to have happened"


def _size_now(client: Any) -> str:
    try:
        scaling = client.scaling()
    except ServerSilent as error:  # the journal is other processes', too
        return f"nobody says. {error}"
    looks = f"auto-scaling: {scaling.now}" if scaling.mode != "off" else "auto-scaling is off"
    return f"{scaling.serving} serve, {scaling.draining} drain, {scaling.starting} start; {looks}"


def _story_lines(values: argparse.Namespace, answer: StoryAnswer) -> Iterator[str]:
    if answer.left_out:
        yield f"… {answer.left_out:,} earlier sequences …"
    for story in answer.stories:
        if not values.why_not:
            yield from story_lines(story)
        if why := answer.stays.get(story.sequence):
            yield f"why it does not move: {why}"
        elif values.why_not:
            yield "it has ended" if story.ended else "the instance that it is on does not answer"


def _why_not_lines(values: argparse.Namespace, answer: WhyNotAnswer) -> Iterator[str]:
    if values.why_not != _ANY:
        yield f"why none leaves it: {answer.instances[values.why_not]}"
        return
    yield f"why nothing moves: {answer.moves}"
    yield f"why none is started: {answer.starts}"


def _when(entry: JournalEntry) -> str:
    if entry.at_s < _EARLIEST_UNIX_S:
        return f"{entry.at_s:10.3f} s"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at_s)) + f".{int(entry.at_s * 1000) % 1000:03}"
