"""The catalogue of a journal: each kind of thing that is noted, with its numbers. There are no others.

An entry says when, by which process and as which of its entries (`by`, `seq`: its id), about whom, and why, in words;
`what` is one of the kinds below, with its numbers. Ids, counts and times only: no prompt, no token, no header.
"""

from __future__ import annotations

from typing import get_args

import msgspec

from llumnix.control.orders import MoveCause, StayCause
from llumnix.control.scaling import ScalingStep
from llumnix.control.scheduler_events import DrainReport
from llumnix.policy.dispatch import DispatchReason
from llumnix.policy.pairing import Rejection
from llumnix.types import InstanceId, Role


class Spent(msgspec.Struct, gc=False):
    """Where the time of a request went; the parts add up to all of it."""

    placing_s: float = 0.0
    """From its arrival until it was sent to an instance."""
    queue_s: float = 0.0
    """On the way there, and in its queue."""
    prefill_s: float = 0.0
    """Until its first token; with `--disable-log-stats` the queue, too, which nobody knows then."""
    decode_s: float = 0.0
    preempted_s: float = 0.0
    """From a preemption until the next token."""
    moving_s: float = 0.0
    """What it waited longer than for a normal step because it moved."""
    replay_s: float = 0.0
    """From the last token before its instance was lost until the next one, and parked in between."""

    @property
    def total_s(self) -> float:
        return float(sum(msgspec.structs.astuple(self)))


class _Noted(msgspec.Struct, frozen=True, gc=False, tag_field="kind"):
    pass


# of requests, by the front end that streams them


class RefusalNoted(_Noted, frozen=True, tag="refused"):
    """A request was not taken."""

    status: int
    """As HTTP."""


class DispatchNoted(_Noted, frozen=True, tag="dispatch"):
    """It was sent to `instance`."""

    prompt_tokens: int
    reason: DispatchReason


class FirstTokenNoted(_Noted, frozen=True, tag="first_token"):
    """Its first token went to the client."""

    ttft_s: float
    """Since its arrival."""
    queue_s: float
    """Of these, on the way to its instance and in the queue there."""
    prefill_s: float
    cached_tokens: int
    """Of its prompt, that the prefix cache had."""


class PreemptionNoted(_Noted, frozen=True, tag="preempted"):
    """It lost its memory, and makes tokens again. Noted when it does."""

    waited_s: float
    """Until it was in a batch again."""
    lost_s: float
    """Until its next token."""


class MoveNoted(_Noted, frozen=True, tag="moved"):
    """It moved from `instance` to `target`. Noted with the first token from there."""

    target: InstanceId
    cause: MoveCause
    """The rule that gave the order; `why` is its sentence."""
    move_id: str
    stages: int
    bytes: int
    blocks_skipped: int
    copy_ms: float
    handover_ms: float
    downtime_ms: float | None
    """What the client waited longer than for a normal step; null if no token came since."""


class StayNoted(_Noted, frozen=True, tag="stayed"):
    """An attempt to move it to `target` was given up: `why`."""

    target: InstanceId
    cause: MoveCause
    """The rule that gave the order, whose sentence is `reason`."""
    stayed_by: StayCause | None
    """What gave it up; `why` is the sentence."""
    move_id: str
    reason: str


class ParkingNoted(_Noted, frozen=True, tag="parked"):
    """It waits for an instance that can take it."""


class ReplayNoted(_Noted, frozen=True, tag="replayed"):
    """Its instance was lost, or would not have it: it goes on at `instance`, computed anew from what its client has."""

    delivered_tokens: int
    reason: DispatchReason


class EndNoted(_Noted, frozen=True, tag="ended"):
    """It is over."""

    outcome: str
    """`stop`, `length`, `repetition`: as its client was told; `abort`: a stop string ended it, or its client left;
    `error`: see `why`."""
    prompt_tokens: int
    output_tokens: int
    latency_s: float
    """Since its arrival."""
    spent: Spent


# of the cluster, by the scheduler


class InstanceNoted(_Noted, frozen=True, tag="instance"):
    """An instance serves, or is gone."""

    serves: bool


class RoundNoted(_Noted, frozen=True, tag="round"):
    """Who would give requests away, and why they cannot. Noted when that is not what it was the round before."""

    rejected: tuple[Rejection, ...]
    left_out: int = 0
    """More of them."""


class ScalingNoted(_Noted, frozen=True, tag="scale"):
    """What auto-scaling did, or would do."""

    step: ScalingStep


class RoleNoted(_Noted, frozen=True, tag="role"):
    """What an instance is preferred for from now on, or would be."""

    role: Role
    carried_out: bool = True
    """False: `--roles advise` would do it."""


class DrainNoted(_Noted, frozen=True, tag="drain"):
    """A drain begins, or has ended."""

    report: DrainReport | None
    """How it went; null: it begins."""


OfRequest = (
    RefusalNoted
    | DispatchNoted
    | FirstTokenNoted
    | PreemptionNoted
    | MoveNoted
    | StayNoted
    | ParkingNoted
    | ReplayNoted
    | EndNoted
)
OfCluster = InstanceNoted | RoundNoted | ScalingNoted | RoleNoted | DrainNoted
AnyNoted = OfRequest | OfCluster


class JournalEntry(msgspec.Struct, frozen=True, gc=False):
    """One thing that happened."""

    at_s: float = msgspec.field(name="at")
    """Seconds since 1970; of a simulated run, since its beginning. Goes back within one `by`
    only where a clock was set back."""
    by: str
    """The process that noted it: `f0`, `f1`, … are front ends, `s` is the scheduler."""
    seq: int
    """Grows by one with each entry of a process, and stays ahead of all before it was restarted."""
    what: AnyNoted
    request: str | None = None
    """As its client was given it."""
    sequence: str | None = None
    """Of a request with several sequences (`n`, several prompts), which one: its first id inside the engines."""
    instance: InstanceId | None = None
    why: str = ""
    """In words; empty where the numbers say it."""

    @property
    def kind(self) -> str:
        return kind_of(type(self.what))


def kind_of(noted: type[AnyNoted]) -> str:
    return str(noted.__struct_config__.tag)


KINDS = tuple(kind_of(noted) for noted in get_args(AnyNoted))
