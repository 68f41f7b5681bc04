"""Which instance takes a new request: the freest one (paper section 4.3).

A dispatch rule ranks one instance at a time, in O(1), so that whoever dispatches keeps the ranks sorted and a
decision does not look at the whole cluster; a rule may then judge the first few once more, for the very request. A
decision carries its reason; the sentence is made only when somebody reads it, because a front end decides thousands of
times a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from llumnix.policy.prefix import ChunkId
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.policy.virtual_usage import dispatch_freeness, paper_dispatch_freeness
from llumnix.types import InstanceId, Priority, RequestId

LAST = 1e9
"""Beyond all seconds and blocks that are compared: where somebody ranks who is chosen only if nobody else can be."""

MOST_SHOWN = 5
"""Instances that a decision names."""

DispatchRank = tuple[float, float]
"""Lowest first: the cost by the rule's measure, then what tells equals apart. What is left of a tie, the id breaks."""

RankInstance = Callable[[InstanceSnapshot, bool, int, int | None], DispatchRank]
"""rank(instance, high, last_turn, priority_target_tokens): `instance` counts what was sent there since its report as
waiting; `high` is the class of the new request; `last_turn` is the number of the last dispatch that went there (0:
none yet)."""


class DispatchRequest(msgspec.Struct, frozen=True, gc=False):
    """A request that looks for an instance. Tokens: its prompt, or all tokens so far when it is replayed."""

    id: RequestId
    prompt_tokens: int
    priority: Priority
    chunks: tuple[ChunkId, ...] = ()
    """Names of the beginning of its prompt (`policy/prefix.py`)."""


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """An instance that may take the request."""

    instance: InstanceSnapshot
    """With what was sent there since its report as waiting."""
    has_room: bool
    """The request can start there at once, as far as memory goes. True where the rule does not ask."""
    cached_tokens: int
    """Of its prompt, that the instance has or will have computed when it comes to this request."""


class Judgement(msgspec.Struct, frozen=True, gc=False):
    """What a rule makes of one candidate for one request."""

    cost: float
    """Lowest first; of equals the one that is first by rank."""
    number: float
    """For people to read."""
    for_tokens: bool = False
    """It takes prompts only where no other can (`policy/roles.py`), and so its cost is beyond all others'."""


JudgeCandidates = Callable[[DispatchRequest, Sequence[Candidate]], list[Judgement]]


@dataclass(frozen=True, slots=True)
class DispatchRule:
    """One way to rank instances, and the words to explain it."""

    measure: str
    rank: RankInstance
    more_is_better: bool = False
    unit: str = ""
    by_priority: bool = False
    """High-priority requests may rank instances differently from normal ones, and are placed by rank alone."""
    room_first: bool = False
    """A normal request goes to the best instance on which it can start at once, if there is one; only then to the best
    of all. The measure is per request of a batch, so a long prompt may not fit where short ones have plenty left."""
    standing_last: bool = False
    """Instances whose engines stand still come after all others."""
    judge: JudgeCandidates | None = None
    """Looks at the request, too, and chooses among the first by rank; None: rank alone decides."""
    first_by_rank: int = MOST_SHOWN
    """So many by rank are weighed for a request."""
    fallback: DispatchRule | None = None
    """The rule in force until an instance has said what its steps cost, for a request that has room nowhere, and for
    one of high priority; None: this one does not ask for any of it."""

    def number(self, rank: DispatchRank) -> float:
        """The measure as people read it."""
        measured = rank[1] if self._is_last(rank) else rank[0]
        return -measured if self.more_is_better else measured

    def by_rank(self, cost: float, rank: DispatchRank) -> Judgement:
        """Of an instance that has this rank, by nothing else."""
        return Judgement(cost, self.number(rank), self._is_last(rank))

    def _is_last(self, rank: DispatchRank) -> bool:
        """Its measure stands second then. (One of which less is better may be as large as that by itself.)"""
        return self.more_is_better and rank[0] == LAST


class Judged(msgspec.Struct, frozen=True, gc=False):
    """An instance that was weighed, as a decision names it."""

    instance: InstanceId
    number: float
    """By the rule's measure."""
    has_room: bool = True
    """False: the request would have to wait there for memory."""
    cached_tokens: int = 0
    """Of its prompt, that need no computing there."""
    for_tokens: bool = False
    """Any other that can take it comes before, whatever the numbers."""


class DispatchReason(msgspec.Struct, frozen=True, gc=False):
    """Why an instance was chosen: `str(reason)` is the sentence."""

    rule: str
    candidates: tuple[Judged, ...]
    """The chosen one, then the next best, `MOST_SHOWN` at most."""
    considered: int
    """Serving instances, those to be avoided left out."""
    passed_over: int = 0
    """Better ones that have no room for the request now."""
    standing: int = 0
    """Left out, because their engines stand still."""
    unit: str = ""
    slow: int = 0
    """Passed over, because tokens come more slowly there (`policy/straggling.py`)."""

    @property
    def chosen(self) -> InstanceId:
        return self.candidates[0].instance

    def __str__(self) -> str:
        still = f", {self.standing} more standing still" if self.standing else ""
        still += f", {self.slow} of them too slow" if self.slow else ""
        best, *others = self.candidates
        chosen = f"{best.instance} has the best {self.rule} of {self.considered}{still}: {self._number(best)}"
        if self.passed_over:
            return f"{chosen} (but for {self.passed_over} without room for it now)"
        if not others:
            return f"{chosen} (the only one that can take it)"
        return f"{chosen} (next {others[0].instance}: {self._number(others[0])})"

    def _number(self, judged: Judged) -> str:
        cached = f", {judged.cached_tokens:,} tokens cached" if judged.cached_tokens else ""
        role = ", for tokens" if judged.for_tokens else ""
        return f"{judged.number:.4g}{self.unit and ' '}{self.unit}{cached}{role}"


def _by_freeness(
    instance: InstanceSnapshot, high: bool, last_turn: int, priority_target_tokens: int | None
) -> DispatchRank:
    return -dispatch_freeness(instance, high, priority_target_tokens), instance.running + instance.waiting


def _by_paper_freeness(
    instance: InstanceSnapshot, high: bool, last_turn: int, priority_target_tokens: int | None
) -> DispatchRank:
    return -paper_dispatch_freeness(instance, high, priority_target_tokens), instance.running + instance.waiting


FREENESS = DispatchRule(
    "freeness", _by_freeness, more_is_better=True, by_priority=True, room_first=True, standing_last=True
)
PAPER_FREENESS = DispatchRule("freeness (paper)", _by_paper_freeness, more_is_better=True, by_priority=True)
