"""Entries and stories as people read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

import msgspec

from llumnix.journal import entries as noted
from llumnix.journal.entries import JournalEntry, Spent
from llumnix.journal.story import FIRST_KEPT, RequestStory
from llumnix.types import Role

PARTS = {
    "placing_s": "before it was placed",
    "queue_s": "in the queue",
    "prefill_s": "prefill",
    "decode_s": "decoding",
    "preempted_s": "preempted",
    "moving_s": "lost to moves",
    "replay_s": "lost with an instance",
}
_FOR = {Role.PREFILL: "for prompts", Role.DECODE: "for tokens", Role.MIXED: "for both, prompts and tokens,"}
_OUTCOMES = {
    "stop": "ended by itself",
    "length": "ended with as many tokens as it might have",
    "repetition": "ended because it repeated itself",
    "abort": "ended by a stop string, or because its client left",
    "error": "failed",
}


def story_lines(story: RequestStory) -> Iterator[str]:
    """How it is and where its time went; then what happened, with the seconds since it arrived."""
    yield f"{story.request} {how_it_is(story)}"
    if spent := spent_words(story.spent):
        yield f"where its time went: {spent}"
    for place, entry in enumerate(story.entries):
        if story.left_out and place == FIRST_KEPT:
            yield f"  … {story.left_out:,} more …"
        yield f"  +{max(0.0, entry.at_s - story.arrived_at_s):.3f} s  {sentence(entry)}"


def how_it_is(story: RequestStory) -> str:
    last = story.entries[-1].what if story.entries else None
    if isinstance(last, noted.EndNoted):
        tokens = f"{last.prompt_tokens:,} + {last.output_tokens:,} tokens"
        return f"{_OUTCOMES.get(last.outcome, last.outcome)} after {_s(story.latency_s)}: {tokens}"
    if isinstance(last, noted.RefusalNoted):
        return "was not taken"
    return f"goes on, {_s(story.latency_s)} after it arrived"


def spent_words(spent: Spent) -> str:
    """The parts that lasted at least a millisecond."""
    parts = msgspec.structs.asdict(spent)
    return ", ".join(f"{_s(parts[name])} {words}" for name, words in PARTS.items() if round(parts[name], 3))


def sentence(entry: JournalEntry) -> str:
    """What happened; of a request it says not which."""
    match entry.what:
        case noted.InstanceNoted() | noted.RoundNoted() | noted.ScalingNoted() | noted.RoleNoted() | noted.DrainNoted():
            return _of_cluster(entry, entry.what)
        case noted.MoveNoted() | noted.StayNoted() | noted.ReplayNoted() | noted.ParkingNoted() | noted.DispatchNoted():
            return _of_place(entry, entry.what)
        case noted.RefusalNoted():
            return f"refused ({entry.what.status}): {entry.why}"
        case noted.FirstTokenNoted() as token:
            cached = f"; the cache had {token.cached_tokens:,} tokens of its prompt" if token.cached_tokens else ""
            parts = f"{_s(token.queue_s)} in the queue, {_s(token.prefill_s)} prefill"
            return f"first token on {entry.instance}: {parts}{cached}"
        case noted.PreemptionNoted() as lost:
            again = f"{_s(lost.waited_s)} until it was in the batch again"
            return f"preempted on {entry.instance}: {again}, {_s(lost.lost_s)} until its next token"
        case noted.EndNoted() as end:
            why = f": {entry.why}" if entry.why else ""
            return f"{_OUTCOMES.get(end.outcome, end.outcome)}{why}"
        case _:
            assert_never(entry.what)


def _of_place(
    entry: JournalEntry,
    what: noted.MoveNoted | noted.StayNoted | noted.ReplayNoted | noted.ParkingNoted | noted.DispatchNoted,
) -> str:
    match what:
        case noted.DispatchNoted():
            return f"placed on {entry.instance}: {what.reason}"
        case noted.ReplayNoted():
            tokens = f"{what.delivered_tokens:,} tokens"
            return f"goes on at {entry.instance}, behind the {tokens} that its client has: {entry.why}; {what.reason}"
        case noted.ParkingNoted():
            return f"waits for an instance: {entry.why}"
        case noted.MoveNoted():
            felt = "no token since" if what.downtime_ms is None else f"{what.downtime_ms:.1f} ms longer than a step"
            copied = f"{what.stages} {'stage' if what.stages == 1 else 'stages'}, {what.bytes:,} bytes"
            return f"moved from {entry.instance} to {what.target}: {entry.why} ({copied}, {felt}; {what.move_id})"
        case noted.StayNoted():
            return f"stayed on {entry.instance}, and not to {what.target}: {entry.why} (tried: {what.reason})"
        case _:
            assert_never(what)


def _of_cluster(entry: JournalEntry, what: noted.OfCluster) -> str:
    match what:
        case noted.InstanceNoted():
            return f"{entry.instance} serves" if what.serves else f"{entry.instance} is gone: {entry.why}"
        case noted.RoundNoted():
            more = f"; and {what.left_out:,} more" if what.left_out else ""
            return (
                "turned down: " + "; ".join(map(str, what.rejected)) if what.rejected else "nobody is turned down"
            ) + more
        case noted.ScalingNoted():
            return f"auto-scaling {'does' if what.step.carried_out else 'would'} {what.step}"
        case noted.RoleNoted():
            verb = "is" if what.carried_out else "would be"
            return f"{entry.instance} {verb} {_FOR[what.role]} from now on: {entry.why}"
        case noted.DrainNoted():
            if what.report is None:
                return f"{entry.instance}: {entry.why}"
            report = what.report
            counts = (
                f"{report.moved} moved, {report.replayed} replayed, {report.finished} ended there, {report.left} left"
            )
            return f"drain of {entry.instance} has ended ({report.outcome}) after {_s(report.seconds)}: {counts}"
        case _:
            assert_never(what)


def _s(seconds: float) -> str:
    return f"{seconds:.3f} s"
