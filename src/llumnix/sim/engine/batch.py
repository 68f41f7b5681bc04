"""The decoding batch of one instance, in closed form.

Every member grows by one token a step, so everything that a step needs follows from a few sums: the
total length, when each member ends, and in which of the next `block_tokens` steps each member needs
a new block. That lets the engine skip thousands of steps at the cost of one, without losing a block.

Lengths: a sequence of L tokens (the newest of them not in the cache yet) holds ⌈(L−1)/b⌉ blocks between
two steps and ⌈L/b⌉ after the next one; so it takes a block at the steps where (L−1) is a multiple of b.
"""

from __future__ import annotations

from bisect import insort
from heapq import heappop, heappush
from operator import attrgetter

from llumnix.sim.engine.gaps import GapLog
from llumnix.sim.engine.request import DECODING, Phase, SimRequest
from llumnix.types import is_high

_ORDER = attrgetter("order")


class DecodeBatch:
    """Requests that decode together, and when each of their tokens came."""

    __slots__ = (
        "_ends", "_gaps", "_phase", "_seq", "_shortest", "_state_blocks", "block_tokens", "decode_s", "fresh",
        "last_emission_s", "made_tokens", "members", "steps", "tokens",
    )  # fmt: skip

    def __init__(self, block_tokens: int, state_blocks: int = 0) -> None:
        """`state_blocks`: what each member holds beside those of its tokens."""
        self.block_tokens = block_tokens
        self._state_blocks = state_blocks
        self.members: list[SimRequest] = []
        """Sorted: most important first, then oldest first; so the last one is the first victim."""
        self.steps = 0
        """Decode steps since the instance started."""
        self.tokens = 0
        """Sum of the members' lengths, now."""
        self.made_tokens = 0
        """Of all decode steps so far."""
        self.decode_s = 0.0
        """Sum of the durations of all decode steps so far."""
        self.last_emission_s = 0.0
        self.fresh: list[SimRequest] = []
        """Members that joined since the last step."""
        self._phase = [0] * block_tokens
        self._ends: list[tuple[int, int, SimRequest]] = []
        self._shortest: list[tuple[int, int, SimRequest]] = []
        self._seq = 0
        self._gaps = GapLog()

    def join(self, request: SimRequest) -> None:
        """Adds a request whose whole sequence but the newest token is in the cache."""
        length = request.prompt_tokens + request.generated
        request.state = DECODING
        request.batch = self
        request.finish_step = self.steps + request.output_tokens - request.generated
        request.slot = (self.steps - length + 1) % self.block_tokens
        request.base = length - self.steps
        request.gap_from = self._gaps.position
        request.decode_from_s = self.decode_s
        self._phase[request.slot] += 1
        self.tokens += length
        members = self.members
        if members and members[-1].order > request.order:
            insort(members, request, key=_ORDER)
        else:
            members.append(request)
        self.fresh.append(request)
        self._seq += 1
        heappush(self._ends, (request.finish_step, self._seq, request))
        if not is_high(request.priority):
            heappush(self._shortest, (request.base, self._seq, request))

    def leave(self, request: SimRequest, state: Phase) -> None:
        """Takes a member out between two steps; afterwards its own fields are exact again."""
        self.members.remove(request)
        request.generated = self.generated(request)
        length = request.prompt_tokens + request.generated
        request.blocks = self._state_blocks + ((length - 2) // self.block_tokens + 1 if length > 1 else 0)
        self._phase[request.slot] -= 1
        self.tokens -= length
        if request in self.fresh:
            self.fresh.remove(request)
        else:
            request.last_token_s = self.last_emission_s
            request.largest_gap_s = max(request.largest_gap_s, self._gaps.largest_since(request.gap_from))
        request.exec_s += self.decode_s - request.decode_from_s
        request.state = state
        request.batch = None

    def generated(self, request: SimRequest, ahead: int = 0) -> int:
        """Output tokens of a member, `ahead` steps from the last completed one."""
        return request.output_tokens - request.finish_step + self.steps + ahead

    def advance(self, steps: int, first_end_s: float, last_step_s: float, end_s: float, duration_s: float) -> None:
        """Completes `steps` steps that ended at `end_s`; the first of them ended at `first_end_s`."""
        gaps = self._gaps
        gaps.push(first_end_s - self.last_emission_s)
        if self.fresh:
            for request in self.fresh:
                gap = first_end_s - request.last_token_s
                if request.handover is not None and request.handover.gap_s is None:
                    request.felt(gap, first_end_s)
                if gap > request.largest_gap_s:
                    request.largest_gap_s = gap
                request.gap_from = gaps.position
            self.fresh.clear()
        if steps > 1:
            gaps.push(last_step_s)
        self.steps += steps
        self.tokens += steps * len(self.members)
        self.made_tokens += steps * len(self.members)
        self.decode_s += duration_s
        self.last_emission_s = end_s

    def steps_to_next_end(self) -> int:
        """Steps until the first member has all its tokens. The batch must not be empty."""
        ends = self._ends
        while True:
            step, _, request = ends[0]
            if request.batch is self and request.finish_step == step:
                return step - self.steps
            heappop(ends)

    def pop_ended(self) -> SimRequest | None:
        """A member that has all its tokens (it still has to `leave`), or None."""
        ends = self._ends
        while ends and ends[0][0] <= self.steps:
            step, _, request = heappop(ends)
            if request.batch is self and request.finish_step == step:
                return request
        return None

    def blocks_for(self, steps: int) -> int:
        """New blocks that the next `steps` steps take."""
        rounds, rest = divmod(steps, self.block_tokens)
        phase, at, width = self._phase, self.steps, self.block_tokens
        blocks = rounds * len(self.members)
        for step in range(at, at + rest):
            blocks += phase[step % width]
        return blocks

    def steps_within(self, blocks: int, limit: int) -> int:
        """The most steps, at most `limit`, that take no more than `blocks` new blocks."""
        if blocks < 0:
            return 0
        rounds, left = divmod(blocks, len(self.members))
        steps = rounds * self.block_tokens
        if steps >= limit:
            return limit
        phase, at, width = self._phase, self.steps, self.block_tokens
        for step in range(at, at + width):
            left -= phase[step % width]
            if left < 0:
                return min(limit, steps + step - at)
        raise AssertionError("a round takes one block per member")

    def takes_block(self, request: SimRequest) -> bool:
        """Whether the next step takes a new block for this member."""
        return request.slot == self.steps % self.block_tokens

    def shortest_tokens(self, ahead: int = 0) -> int:
        """Length of the shortest member of normal priority, `ahead` steps on; 0 if there is none."""
        heap = self._shortest
        while heap:
            base, _, request = heap[0]
            if request.batch is self and request.base == base:
                return base + self.steps + ahead
            heappop(heap)
        return 0
