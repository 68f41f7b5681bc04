"""A request as the simulated cluster sees it, from arrival to its last token."""

from __future__ import annotations

from math import inf


class Handover:
    """What the client felt of one hand-over."""

    __slots__ = ("gap_s", "out_s", "step_s")

    def __init__(self, out_s: float, step_s: float) -> None:
        self.out_s = out_s
        """Out of the source's batch to in the target's."""
        self.gap_s: float | None = None
        """Last token before to first token after."""
        self.step_s = step_s
        """A normal decode step there."""

    @property
    def downtime_s(self) -> float | None:
        return None if self.gap_s is None else max(0.0, self.gap_s - self.step_s)


class SimRequest:
    """Everything that is known of one request. Written by the instance that holds it and by the driver.

    `generated` is exact only while the request is not decoding; a decoding request's count follows from
    its batch (see `DecodeBatch.generated`), which is what makes skipping steps possible.
    """

    __slots__ = (
        "arrival_s", "base", "batch", "blocks", "cached_units", "decode_from_s", "epoch", "exec_s", "finish_s",
        "finish_step", "first_token_s", "gap_from", "generated", "handover", "hashes", "id", "index", "instances",
        "largest_gap_s", "last_token_s", "left_s", "lost_s", "migrations", "moved_s", "order", "output_tokens",
        "preempted_at_s", "preemptions", "prefilled", "priority", "prompt_tokens", "replays", "slot", "state",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913  (a row of a workload has this many columns)
        self,
        index: int,
        arrival_s: float,
        prompt_tokens: int,
        output_tokens: int,
        priority: int = 0,
        hashes: tuple[int, ...] = (),
        id: str | None = None,
    ) -> None:
        self.index = index
        self.id = f"r{index}" if id is None else id
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.priority = priority
        self.hashes = hashes
        """Hashes of the prompt's full prefix blocks, if the trace has them."""
        self.order = (0, arrival_s, index)
        """Place in queues and victim order: most important first, then oldest first."""

        self.state = NEW
        self.generated = 0
        """Output tokens so far."""
        self.prefilled = 0
        """Tokens of the sequence whose KV is computed, while it is being prefilled."""
        self.blocks = 0
        """Blocks held, exact while it does not decode (see `generated`)."""
        self.cached_units = 0
        """Units of its prefix that it shares with the instance's prefix cache."""
        self.epoch = 0

        # Where it stands in a batch (meaningless outside one).
        self.batch: object | None = None
        self.finish_step = 0
        self.slot = 0
        self.base = 0
        self.gap_from = 0
        self.decode_from_s = 0.0

        # What the record will say.
        self.first_token_s = inf
        self.last_token_s = inf
        self.finish_s = inf
        self.largest_gap_s = 0.0
        self.exec_s = 0.0
        """Sum of the steps that it took part in, without the time between them (the paper's decode execution time)."""
        self.preemptions = 0
        self.preempted_at_s: float | None = None
        self.lost_s = 0.0
        """Time lost to preemptions: waiting again plus computing again what was there before."""
        self.migrations = 0
        self.moved_s: float | None = None
        self.left_s = 0.0
        """When it last left a batch or a queue to move."""
        self.handover: Handover | None = None
        """Its last hand-over, if there was one."""
        self.replays = 0
        self.instances: list[str] = []

    @property
    def tokens(self) -> int:
        """Length of its sequence: prompt and output so far."""
        return self.prompt_tokens + self.generated

    def __repr__(self) -> str:
        return f"<{self.id} {self.state} {self.prompt_tokens}+{self.generated}/{self.output_tokens}>"


NEW = "new"
WAITING = "waiting"
PREFILLING = "prefilling"
DECODING = "decoding"
DETACHED = "detached"
"""Out of the batch, holding its blocks, on its way to another instance."""
FINISHED = "finished"
ABORTED = "aborted"
