"""An engine without tensors and without time, which knows when its KV cache is wrong.

A block's content says what is written in it: (request, index in the sequence, tokens filled). A sequence whose blocks
are not what they should be makes bad tokens from then on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from llumnix.policy.snapshot import RequestSnapshot
from llumnix.types import NORMAL, RequestId, RequestState

BLOCK_TOKENS = 2
PREFILL_CHUNK = 6


class Token(msgspec.Struct, frozen=True):
    index: int
    """Place in the client's answer, replays included."""
    good: bool


class Spec(msgspec.Struct, frozen=True):
    """What a request brings with it; also the identity that a Prepare carries."""

    id: RequestId
    prompt_tokens: int
    first_index: int
    max_tokens: int
    cached_blocks: int
    """Full blocks of its prompt that every engine has in its prefix cache."""


class State(msgspec.Struct, frozen=True):
    """What a Commit carries beside the blocks."""

    spec: Spec
    output_tokens: int
    computed_tokens: int
    good: bool


@dataclass
class Sequence:
    spec: Spec
    state: str = "waiting"  # running, detaching, detached
    output_tokens: int = 0
    computed_tokens: int = 0
    blocks: list[int] = field(default_factory=list)
    good: bool = True

    @property
    def tokens(self) -> int:
        return self.spec.prompt_tokens + self.output_tokens

    @property
    def needed_blocks(self) -> int:
        return -(-self.tokens // BLOCK_TOKENS)

    @property
    def settled_blocks(self) -> int:
        return self.computed_tokens // BLOCK_TOKENS

    @property
    def decoding(self) -> bool:
        return self.state != "waiting" and self.computed_tokens == self.tokens - 1

    @property
    def finished(self) -> bool:
        return self.output_tokens >= self.spec.max_tokens

    def filled(self, index: int) -> tuple[RequestId, int, int]:
        return self.spec.id, index, max(0, min(BLOCK_TOKENS, self.computed_tokens - index * BLOCK_TOKENS))

    def snapshot(self) -> RequestSnapshot:
        states = {"waiting": RequestState.WAITING, "running": RequestState.RUNNING}
        return RequestSnapshot(
            id=self.spec.id,
            state=states.get(self.state, RequestState.MIGRATING),
            priority=NORMAL,
            arrival_s=0.0,
            output_tokens=self.output_tokens,
            held_blocks=len(self.blocks),
            needed_blocks=self.needed_blocks,
            length_blocks=self.needed_blocks,
        )


class TinyEngine:
    def __init__(self, total_blocks: int) -> None:
        self.contents: list[tuple[RequestId, int, int] | None] = [None] * total_blocks
        self.holders = [0] * total_blocks
        self.sequences: dict[RequestId, Sequence] = {}
        self.preempted: list[RequestId] = []
        """By the last `advance`."""

    @property
    def free_blocks(self) -> int:
        return self.holders.count(0)

    def allocate(self, count: int) -> list[int] | None:
        free = [block for block, holders in enumerate(self.holders) if holders == 0][:count]
        if len(free) < count:
            return None
        for block in free:
            self.holders[block] = 1
        return free

    def hold(self, blocks: list[int]) -> None:
        for block in blocks:
            self.holders[block] += 1

    def let_go(self, blocks: list[int]) -> None:
        for block in blocks:
            self.holders[block] -= 1
            assert self.holders[block] >= 0, f"block {block} was freed twice"
            if self.holders[block] == 0:
                self.contents[block] = None

    def add(self, spec: Spec) -> None:
        assert spec.id not in self.sequences, f"{spec.id} is here already"
        self.sequences[spec.id] = Sequence(spec)

    def install(self, state: State, blocks: list[int]) -> None:
        sequence = Sequence(state.spec, "running" if blocks else "waiting", state.output_tokens)
        sequence.blocks = blocks
        sequence.computed_tokens = state.computed_tokens if blocks else 0
        sequence.good = state.good
        assert state.spec.id not in self.sequences, f"{state.spec.id} is here already"
        self.sequences[state.spec.id] = sequence

    def remove(self, request: RequestId) -> None:
        self.let_go(self.sequences.pop(request).blocks)

    def preempt(self, request: RequestId) -> None:
        sequence = self.sequences[request]
        self.let_go(sequence.blocks)
        sequence.blocks = []
        sequence.computed_tokens = 0
        sequence.state = "waiting"

    def advance(self, request: RequestId) -> Token | None:
        """One step of one sequence; None if it has no room or is in its prefill.

        A running one that has no room preempts the last one that runs, perhaps itself."""
        sequence = self.sequences[request]
        self.preempted = []
        while (more := self.allocate(sequence.needed_blocks - len(sequence.blocks))) is None:
            if sequence.state != "running":
                return None
            last = [name for name, each in self.sequences.items() if each.state == "running"][-1]
            self.preempt(last)
            self.preempted.append(last)
        sequence.blocks += more
        if sequence.state == "waiting":
            sequence.state = "running"
        before = [sequence.filled(index) for index in range(len(sequence.blocks))]
        for index, block in enumerate(sequence.blocks):
            if before[index][2] and self.contents[block] != before[index]:
                sequence.good = False
        sequence.computed_tokens = min(sequence.tokens, sequence.computed_tokens + PREFILL_CHUNK)
        for index, block in enumerate(sequence.blocks):
            self.contents[block] = sequence.filled(index)
        if sequence.computed_tokens < sequence.tokens:
            return None
        sequence.output_tokens += 1
        return Token(sequence.spec.first_index + sequence.output_tokens - 1, sequence.good)
