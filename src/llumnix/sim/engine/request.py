"""A request as the simulated cluster sees it, from arrival to its last token."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

from llumnix.control.orders import MoveOutcome
from llumnix.journal.story import Story
from llumnix.policy.classes import Declined


@dataclass(slots=True)
class Handover:
    """What the client felt of one hand-over."""

    out_s: float
    """Out of the source's batch to in the target's."""
    step_s: float
    """A normal decode step there."""
    gap_s: float | None = field(default=None, init=False)
    """Last token before to first token after."""

    @property
    def downtime_s(self) -> float | None:
        return None if self.gap_s is None else max(0.0, self.gap_s - self.step_s)


class Phase(StrEnum):
    """Where a request stands."""

    NEW = "new"
    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    DETACHED = "detached"
    """Out of the batch, holding its blocks, on its way to another instance."""
    FINISHED = "finished"
    ABORTED = "aborted"


NEW, WAITING, PREFILLING, DECODING, DETACHED, FINISHED, ABORTED = Phase
"""By themselves: reading a member of an enum costs a call on Python 3.11, and they are read at every step."""


@dataclass(slots=True, eq=False, repr=False)
class SimRequest:
    """Everything that is known of one request. Written by the instance that holds it and by the driver.

    `generated` is exact only while the request is not decoding; a decoding request's count follows from
    its batch (see `DecodeBatch.generated`), which is what makes skipping steps possible.
    """

    index: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    hashes: tuple[int, ...] = ()
    """Hashes of the prompt's full prefix blocks, if the trace has them."""
    id: str = ""
    """Inside the engines: a new one after each replay. Made of `index` if the trace has none."""
    tenant: str = ""
    """Whose it is, where the run has classes."""
    service_class: str = ""
    """The one that it asks for, and then that it has; empty: its tenant's first."""
    client_id: str = field(init=False)
    """The first one, which its client knows."""
    order: tuple[int, float, int] = field(init=False)
    """Place in queues and victim order: most important first, then oldest first."""

    state: Phase = field(default=NEW, init=False)
    generated: int = field(default=0, init=False)
    """Output tokens so far."""
    prefilled: int = field(default=0, init=False)
    """Tokens of the sequence whose KV is computed, while it is being prefilled."""
    blocks: int = field(default=0, init=False)
    """Blocks held, exact while it does not decode (see `generated`)."""
    cached_units: int = field(default=0, init=False)
    """Units of its prefix that it shares with the instance's prefix cache."""

    cached_tokens: int = field(default=0, init=False)
    """Of its prompt, that were cached where it waits when it came there: its turn is by what it needs beside these."""
    expected_hit_tokens: int = field(default=0, init=False)
    """Of its prompt, that will need no computing where it waits, as far as was known when it came there."""

    hit_tokens: int = field(default=0, init=False)
    """Of its prompt, that needed no computing when it last started."""

    # Where it stands in a batch (meaningless outside one).
    batch: object | None = field(default=None, init=False)
    finish_step: int = field(default=0, init=False)
    slot: int = field(default=0, init=False)
    base: int = field(default=0, init=False)
    gap_from: int = field(default=0, init=False)
    decode_from_s: float = field(default=0.0, init=False)

    # What the record will say.
    first_token_s: float = field(default=inf, init=False)
    last_token_s: float = field(default=inf, init=False)
    finish_s: float = field(default=inf, init=False)
    largest_gap_s: float = field(default=0.0, init=False)
    exec_s: float = field(default=0.0, init=False)
    """Sum of the steps that it took part in, without the time between them (the paper's decode execution time)."""
    preemptions: int = field(default=0, init=False)
    preempted_at_s: float | None = field(default=None, init=False)
    headed_s: float | None = field(default=None, init=False)
    """Since when it is the first of the queue where it waits, as far as a look found it there."""
    began_s: float = field(default=0.0, init=False)
    """When it last started to run."""
    lost_s: float = field(default=0.0, init=False)
    """Time lost to preemptions: waiting again plus computing again what was there before."""
    migrations: int = field(default=0, init=False)
    moved_s: float | None = field(default=None, init=False)
    left_s: float = field(default=0.0, init=False)
    """When it last left a batch or a queue to move."""
    handover: Handover | None = field(default=None, init=False)
    """Its last hand-over, if there was one."""
    replays: int = field(default=0, init=False)
    declined: Declined | None = field(default=None, init=False)
    """Why it was not taken; None: it was."""
    story: Story | None = field(default=None, init=False)
    """Told what happens to it, if anybody wants to know."""
    untold: MoveOutcome | None = field(default=None, init=False)
    """A move that its story is told with the first token after it."""
    instances: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.id = self.client_id = self.id or f"r{self.index}"
        self.order = (0, self.arrival_s, self.index)

    @property
    def tokens(self) -> int:
        """Length of its sequence: prompt and output so far."""
        return self.prompt_tokens + self.generated

    def decline(self, now_s: float, declined: Declined) -> None:
        """It was not taken, and will be nowhere."""
        self.declined = declined
        if self.story is not None:
            self.story.refused(now_s, declined.status, declined.why)

    def begin(self, now_s: float, blocks: int) -> None:
        """It is taken from the queue, and holds `blocks` blocks."""
        self.state = PREFILLING
        self.blocks = blocks
        self.began_s = now_s
        if self.story is not None:
            self.story.scheduled(now_s)

    def preempted(self, now_s: float) -> None:
        """Its KV is thrown away; it will be computed again."""
        self.preemptions += 1
        if self.generated:
            self.preempted_at_s = now_s
        self.cached_tokens = self.expected_hit_tokens  # what came before it is computed by now
        self.prefilled = 0
        if self.story is not None:
            self.story.preempted(now_s)

    def felt(self, gap_s: float, now_s: float) -> None:
        """The first token after a hand-over went out."""
        assert self.handover is not None
        self.handover.gap_s = gap_s
        self.tell_move(now_s, self.handover.downtime_s)

    def moved(self, now_s: float, outcome: MoveOutcome) -> None:
        """Its source knows how an attempt to move it ended."""
        if self.story is None:
            return
        self.tell_move(now_s, None)
        if not outcome.ok:
            self.story.stayed(now_s, outcome)
            return
        self.untold = outcome
        if self.state is not DECODING or self.handover is None:
            self.tell_move(now_s, None)
        elif (downtime_s := self.handover.downtime_s) is not None:
            self.tell_move(now_s, downtime_s)

    def tell_move(self, now_s: float, downtime_s: float | None) -> None:
        if self.story is not None and self.untold is not None:
            self.story.moved(now_s, self.untold, downtime_s)
            self.untold = None

    def emit(self, now_s: float) -> None:
        """The token at the end of a prefill goes out; those of decoding are the batch's."""
        if self.story is not None:
            self.story.token(now_s, self.hit_tokens)
        self.generated += 1
        if self.first_token_s == inf:
            self.first_token_s = now_s
        else:
            self.largest_gap_s = max(self.largest_gap_s, now_s - self.last_token_s)
        self.last_token_s = now_s

    def is_on(self, instance: str) -> bool:
        """The one that it was sent to, or came to, last."""
        return bool(self.instances) and self.instances[-1] == instance

    def __repr__(self) -> str:
        return f"<{self.id} {self.state} {self.prompt_tokens}+{self.generated}/{self.output_tokens}>"
