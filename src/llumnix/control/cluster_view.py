"""Who is there, by what was heard: the last report of each instance, put together with what was ordered since."""

from __future__ import annotations

from msgspec.structs import replace

from llumnix.control.drain import Drain
from llumnix.control.gone import GoneIds
from llumnix.control.moves import MovesInFlight
from llumnix.control.scheduler_events import DemandHeld
from llumnix.policy.figures import figures
from llumnix.policy.snapshot import ClusterSnapshot, InstanceSnapshot
from llumnix.types import InstanceId, InstanceState

HELD_FOR_S = 5.0
"""What a front end said that it holds counts for so long: it may have died."""

NEWCOMER_S = 10.0
"""An instance counts as new for this long: requests are moved to it more eagerly and several at once."""

FIRST_WORDS_S = 5.0
"""Whoever is heard of so soon after the first of all may have been there before this scheduler, and is not new."""


class Known:
    """One instance: when it was last heard of, and what it said (None: nothing yet), heartbeats counted."""

    __slots__ = ("drain", "given", "heard_s", "new_until_s", "snapshot")

    def __init__(self, heard_s: float, new_until_s: float) -> None:
        self.heard_s = heard_s
        self.new_until_s = new_until_s
        self.snapshot: InstanceSnapshot | None = None
        self.drain: Drain | None = None
        self.given = 0
        """Requests that it gave away since that report."""

    @property
    def serves(self) -> bool:
        """It takes requests, as far as anybody knows."""
        return self.snapshot is not None and self.drain is None and self.snapshot.state is InstanceState.RUNNING


class ClusterView:
    """`ignored` counts what came too late to matter, by kind."""

    def __init__(self, moves: MovesInFlight, ignored: dict[str, int]) -> None:
        self._moves = moves
        self._ignored = ignored
        self._known: dict[InstanceId, Known] = {}
        self._held: dict[int, DemandHeld] = {}
        """By front end."""
        self._first_word_s: float | None = None
        self._lost = GoneIds()

    def __len__(self) -> int:
        return len(self._known)

    def __getitem__(self, instance: InstanceId) -> Known:
        return self._known[instance]

    def get(self, instance: InstanceId) -> Known | None:
        return self._known.get(instance)

    @property
    def ids(self) -> list[InstanceId]:
        """In order."""
        return sorted(self._known)

    def hear(self, at: float, instance: InstanceId) -> Known | None:
        """A sign of life; None if the instance is lost already, and what it says does not count."""
        known = self._known.get(instance)
        if known is None:
            if instance in self._lost:
                self.ignore("word of a lost instance")
                return None
            if self._first_word_s is None:
                self._first_word_s = at
            is_new = at > self._first_word_s + FIRST_WORDS_S
            known = self._known[instance] = Known(at, at + NEWCOMER_S if is_new else at)
        known.heard_s = at
        return known

    def read(self, at: float, report: InstanceSnapshot) -> Known | None:
        """Takes a report; None if it says nothing new."""
        known = self.hear(at, report.id)
        if known is None:
            return None
        if known.snapshot is not None and report.seq <= known.snapshot.seq:
            if report.seq == known.snapshot.seq:  # a heartbeat
                known.snapshot = report
            else:
                self.ignore("report older than the known one")
            return None
        known.snapshot, known.given = report, 0
        return known

    def forget(self, instance: InstanceId) -> Known | None:
        """It is gone, and its id never comes back."""
        self._lost.add(instance)
        return self._known.pop(instance, None)

    def lost(self, at: float, timeout_s: float, step_timeout_s: float) -> dict[InstanceId, str]:
        """Who was silent for too long, or has work and does nothing about it, and why, in order of their ids."""
        why = {instance: _why_lost(at, self._known[instance], timeout_s, step_timeout_s) for instance in self.ids}
        return {instance: sentence for instance, sentence in why.items() if sentence}

    def excuse_silence(self, at: float) -> None:
        """We were deaf ourselves: their reports wait in our queue."""
        for known in self._known.values():
            known.heard_s = at

    def others_serve(self, instance: InstanceId) -> bool:
        return any(known.serves for other, known in self._known.items() if other != instance)

    def newcomers(self, at: float) -> frozenset[InstanceId]:
        return frozenset(instance for instance, known in self._known.items() if at < known.new_until_s)

    def look(self, instance: InstanceId) -> InstanceSnapshot | None:
        """One instance by its last report and the orders that went out since; None if there is no report."""
        known = self._known.get(instance)
        return None if known is None or known.snapshot is None else self._as_ordered(known, known.snapshot)

    def as_target(self, instance: InstanceId) -> InstanceSnapshot | None:
        """As `look`, and what is promised there counts as taken, though nobody has reserved it yet."""
        known, snapshot = self._known.get(instance), self.look(instance)
        if known is None or known.snapshot is None or snapshot is None:
            return None
        return self._moves.less_promised(snapshot, known.snapshot.incoming)

    def snapshot(self, at: float) -> ClusterSnapshot:
        """The cluster by the last reports and the orders that went out since."""
        known = (self._known[instance] for instance in self.ids)
        held = [word for word in self._held.values() if at < word.at + HELD_FOR_S]
        return ClusterSnapshot(
            at=at,
            instances=tuple(self._as_ordered(one, one.snapshot) for one in known if one.snapshot is not None),
            held_requests=sum(word.requests for word in held),
            held_tokens=sum(word.tokens for word in held),
        )

    def holds(self, word: DemandHeld) -> None:
        """A front end tells it again and again, as long as it holds something."""
        self._held[word.front_end] = word

    def _as_ordered(self, known: Known, snapshot: InstanceSnapshot) -> InstanceSnapshot:
        """The report with what was ordered since: a drain, and moves."""
        drains = known.drain is not None and snapshot.state is InstanceState.RUNNING
        incoming = max(snapshot.incoming, self._moves.incoming(snapshot.id))
        outgoing = max(snapshot.outgoing, self._moves.outgoing(snapshot.id))
        if not drains and incoming == snapshot.incoming and outgoing == snapshot.outgoing:
            return snapshot
        state = InstanceState.DRAINING if drains else snapshot.state
        to_decode = max(0, snapshot.to_decode - (outgoing - snapshot.outgoing))
        blocks = -(-snapshot.to_decode_blocks * to_decode // max(1, snapshot.to_decode))
        return replace(
            snapshot, state=state, incoming=incoming, outgoing=outgoing, to_decode=to_decode, to_decode_blocks=blocks
        )

    def ignore(self, what: str) -> None:
        self._ignored[what] = self._ignored.get(what, 0) + 1


def _why_lost(at: float, known: Known, timeout_s: float, step_timeout_s: float) -> str:
    silent_s = at - known.heard_s
    if silent_s > timeout_s:
        return f"no heartbeat for {figures(silent_s, 3)} s (limit {timeout_s:g} s)"
    load = known.snapshot
    if load is None or load.standing_s <= step_timeout_s or not (load.running or load.waiting or load.unread):
        return ""  # one without work whose heartbeats are late is no engine that hangs
    work = f"{load.running} running, {load.waiting} waiting, {load.unread} unread"
    stood = f"its engine did nothing for {figures(load.standing_s, 3)} s"
    return f"it lives, but {stood}, with {work} (limit {step_timeout_s:g} s)"
