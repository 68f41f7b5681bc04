"""What a policy may know: frozen facts, in blocks and tokens. Nothing derived is stored here.

An `InstanceSnapshot` is also the load report that an instance pushes: it is small and of constant
size, so that freeness costs O(1) however many requests the instance holds.
"""

from __future__ import annotations

import msgspec

from llumnix.types import InstanceId, InstanceState, Priority, RequestId, RequestState, Role

STANDING_S = 2.0
"""An engine that has work and got nothing done for so long stands still: a step that lasts so long is a slow one at
least, and a hung engine is found out after minutes."""


class RequestSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One request as its instance sees it: what victim choice needs.

    Blocks are engine blocks (`InstanceSnapshot.block_tokens` tokens each).
    """

    id: RequestId
    state: RequestState
    priority: Priority
    arrival_s: float
    output_tokens: int
    held_blocks: float
    """Blocks charged to it: a block shared by n requests counts 1/n for each."""
    needed_blocks: int
    """Blocks, of all kinds, that it needs where it goes: for its whole sequence so far, and its state."""
    length_blocks: int
    """Its sequence so far in blocks of tokens, as a move counts them."""
    why_pinned: str = ""
    """Why it cannot move (now); empty if it can."""
    remaining_tokens: int | None = None
    """It makes at most so many more tokens; None: not known."""
    moved_s: float | None = None
    """When it last arrived here by migration (or an attempt to move it failed): for the cooldown."""
    has_adapter: bool = False
    """A LoRA adapter, for which a target may lack a place."""


class StepCost(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a step of an instance takes: so much in any case, and so much for each token of prompts that it computes,
    for each request that it makes a token for, and for each token that those have already. None is negative."""

    fixed_ms: float
    prefill_token_us: float
    request_us: float
    context_token_us: float


class InstanceSnapshot(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The load of one instance at one moment. `free_blocks` counts evictable cached blocks as free."""

    id: InstanceId
    at: float
    """By the instance's clock, when this was counted. A heartbeat is the last report with `unread` and `standing_s`
    renewed."""
    seq: int
    """Grows with every report of this instance; an older report than the one known is ignored."""
    state: InstanceState = InstanceState.RUNNING
    total_blocks: int
    """Of the KV cache; of an engine that has none, what its largest batch would fill."""
    watermark_blocks: int = 0
    free_blocks: int
    block_tokens: int = 16
    state_blocks: int = 0
    """That each request holds beyond those of its tokens, however long it is."""
    kv_groups: tuple[tuple[int, int], ...] = ()
    """Where a request takes blocks of several kinds: the tokens of one of each kind, and how many it takes at most (0:
    as many as its tokens need). Empty: those of `block_tokens`, and as many as its tokens need."""
    max_running: int = 256
    running: int = 0
    """Requests in the batch. One that is just being handed over is in none: `outgoing` counts it at its source, and
    `incoming` at its target."""
    waiting: int = 0
    """Queued requests, preempted ones included."""
    preempted: int = 0
    """Preempted and not yet resumed."""
    head_of_line_blocks: int = 0
    """Blocks needed by the first request in the queue; 0 if none waits."""
    head_of_line_s: float = 0.0
    """Since a look first found the first request of the queue to be that, here and since it last ran; 0 if none
    waits."""
    spared_blocks: int = 0
    """That stay free beside it when it starts, for those that run (`policy/waiting_order.py`); 0 if none waits."""
    queued_blocks: int = 0
    """Blocks needed by all requests in the queue, the first included."""
    prefill_tokens: int = 0
    """Tokens to be computed before all that run or wait there have their first (or, preempted, their next) token."""
    decoding: int = 0
    """Running requests that have made a token, and make one more in each step."""
    context_tokens: int = 0
    """Length of those, together."""
    prefix_chunk_tokens: int = 0
    """It tells of the prefixes in its cache in chunks of so many tokens; 0: it does not."""
    step_tokens: int = 0
    """Tokens that one step computes at most without drafts, one of each decoding request among them; 0: not known."""
    step_cost: StepCost | None = None
    """As measured of its latest steps; None until it has done enough of them (`control/step_fit.py`)."""
    slowdown: float = 1.0
    """So many times as long as that says its steps of the last seconds took (`control/latest_steps.py`)."""
    step_s: float | None = None
    """What its steps of the last seconds took, prompts and all, on average; None: not measured."""
    shortest_step_s: float | None = None
    """About what the shortest of the last few hundred took; None: not measured."""
    role: Role = Role.MIXED
    computed_tokens: int = 0
    """Of prompts, since the instance started."""
    made_tokens: int = 0
    """Of outputs, since the instance started."""
    tpot_target_s: float = 0.0
    """Its steps leave so much between two tokens, if they can; 0: no target."""
    to_decode: int = 0
    """On one for prompts: running requests that are to make their tokens elsewhere, and are not on the way yet."""
    to_decode_blocks: int = 0
    """Blocks that those need, together."""
    high_running: int = 0
    high_waiting: int = 0
    incoming: int = 0
    """Migrations on their way in; their reserved blocks are not free any more."""
    outgoing: int = 0
    preemptions: int = 0
    """Preemptions since the instance started."""
    migrations_in: int = 0
    migrations_out: int = 0
    ended: int = 0
    """Requests that ended here, finished or aborted, since the instance started."""
    short_blocks: int = 0
    """Blocks that the batch will need within the next `relief_steps` steps and that are not free: unless a request
    leaves, one will be preempted soon."""
    preemptions_avoided: int = 0
    """Requests that left in time, so that none had to be preempted."""
    recompute_tokens_saved: int = 0
    """Tokens of those: what would have been computed twice."""
    late_messages: int = 0
    """About migrations, that came twice, too late, or for an attempt that was over; they change nothing."""
    smallest_running_blocks: int = 0
    """Blocks of the shortest running request of normal priority that can move; 0 if there is none."""
    pinned: bool = False
    """Nothing that this instance has can move, queued requests included."""
    dispatches_seen: tuple[int, ...] = ()
    """Per front end: how many of its dispatches this report already counts."""
    unread: int = 0
    """In heartbeats: messages that its engine has not taken up."""
    standing_s: float = 0.0
    """In heartbeats: for how long its engine has done nothing although it had something to do. The instance says so
    itself, so that whoever starts to listen knows it at once."""
    drain_keep: bool = False
    """It is draining and is to be left running, empty; a restarted scheduler reads its intent here."""
    asked_to_end: bool = False
    """It is draining and will not take requests again: its process was asked to end."""

    @property
    def stands_still(self) -> bool:
        """It takes requests only where all others do no better, and nothing is asked of it, since it would not answer:
        that would only keep others from what it was promised."""
        return self.standing_s >= STANDING_S

    @property
    def goes(self) -> bool:
        """It is draining, and then it ends for good."""
        return self.state is InstanceState.DRAINING and not self.drain_keep


class ClusterSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster as the scheduler last heard of it; `instances` is sorted by id."""

    at: float
    instances: tuple[InstanceSnapshot, ...]
    held_requests: int = 0
    """That wait at the front ends and were sent to no instance yet."""
    held_tokens: int = 0
    """Of their prompts."""
