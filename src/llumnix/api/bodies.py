"""Every body of the admin API and every row in one. The server encodes with these, clients decode.

A client ignores what it does not know, so that a later server may say more; what an earlier one may not say has a
default. The reference (docs/use/http.md) and the OpenAPI document are made from this file by scripts/http_reference.py:
docstrings are what they say.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from llumnix.control.class_counts import ClassRow
from llumnix.control.scheduler_events import DrainReport
from llumnix.journal.entries import JournalEntry
from llumnix.journal.story import RequestStory
from llumnix.policy.snapshot import StepCost
from llumnix.report.records import MigrationRecord
from llumnix.types import InstanceId, InstanceState, RequestState, Role
from llumnix.wire.to_front_end import ScalingStatus


class InstanceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One instance, by its last load report. Counts are 0 for one that is starting or gone."""

    id: InstanceId
    state: InstanceState
    pid: int | None = None
    """Null for one that is gone."""
    node: str | None = None
    """The machine that it runs on."""
    role: Role = Role.MIXED
    """What it is preferred for: prompts, tokens, or both."""
    block_tokens: int = 0
    """Tokens in a block of its KV cache."""
    state_blocks: int = 0
    """That each request holds beyond those of its tokens, however long it is: of hybrid models."""
    total_blocks: int = 0
    free_blocks: int = 0
    """Unused, or cached and evictable."""
    running: int = 0
    """Requests in its batch."""
    waiting: int = 0
    """Requests in its queue."""
    preemptions: int = 0
    """Since it started, as all counts below."""
    preemptions_avoided: int = 0
    """Requests that left in time, so that none had to be preempted."""
    recompute_tokens_saved: int = 0
    """Tokens of those, which would have been computed twice."""
    freeness: float | None = None
    """Free blocks less what the queue needs, per request; null for one that takes no requests."""
    load: str | None = None
    """One word for it: idle, roomy, steady, tight, over, leaving, kept."""
    prefill_tokens: int = 0
    """To be computed before all that it has have their first token."""
    first_token_s: float | None = None
    """In how many seconds a short request that came now would have its first token, if there is memory for it. Null
    while too little is known of the instance's steps; it is measured as they go."""
    token_s: float | None = None
    """Seconds between two tokens of a request there, once all that it has decode. Null as above."""
    step_cost: StepCost | None = None
    """What these two are made of. Null as above."""
    slowdown: float = 1.0
    """How many times as long as that says its steps of the last seconds took; 1 as long as that is within noise. Both
    count it."""
    migrations_in: int = 0
    migrations_out: int = 0
    why: str | UnsetType = UNSET
    """Why it is gone. Left out for one that takes requests, or drains."""


class SchedulerRow(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler's process. Without it requests are served, but nothing moves by itself."""

    pid: int | None
    state: Literal["starting", "running", "lost"]


class FreenessLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The thresholds in force."""

    give: float
    """An instance with less gives requests away."""
    take: float
    """An instance with more takes them."""


class ScalingRow(ScalingStatus, frozen=True, kw_only=True):
    """Size of the cluster, and what auto-scaling makes of it."""

    mean_instances: float | None
    """Weighted by time; null at the very beginning."""


class InstancesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Instances that serve or drain, then those that start, then the last that went."""

    instances: list[InstanceRow]
    scheduler: SchedulerRow | None = None
    scaling: ScalingRow | None = None
    """Null while the scheduler is silent."""
    freeness_limits: FreenessLimits | None = None


class ClientRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence of a request that runs or waits. With n > 1, or several prompts, a request has several."""

    id: str
    """As its client was given it."""
    instance: InstanceId
    priority: Literal["high", "normal"]
    prompt_tokens: int
    output_tokens: int
    """So far."""
    state: RequestState
    migrations: int
    """Moves so far."""
    movable: bool
    why_pinned: str | None
    """Why it cannot move, if it cannot."""


class RequestsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    requests: list[ClientRequest]


class MigrationsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Attempts to move a request, newest first."""

    migrations: list[MigrationRecord]


class JournalAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What happened, oldest first, in the journals of all front ends and of the scheduler."""

    entries: list[JournalEntry]
    cursor: str
    """To be given as `after`, to hear what happened since."""
    lost: int
    """Entries since the given cursor that were not kept long enough."""


class StoryWords(msgspec.Struct, frozen=True, kw_only=True):
    """A story as people read it."""

    how_it_is: str
    entries: list[str]
    """Of each of its entries, what happened."""


class StoryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Of each sequence of a request: one, unless `n` > 1 or several prompts. Of very many, the latest."""

    stories: list[RequestStory]
    left_out: int = 0
    """Sequences with the same id that came before these."""
    stays: dict[str, str]
    """Of those that go on, by `sequence`: why it does not move, as far as that is known."""
    now: dict[str, ClientRequest] = {}
    """Of those that go on, by `sequence`: where it is, and how far."""
    words: dict[str, StoryWords] = {}
    """By `sequence`."""


class WhyNotAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Why nothing happens just now: the first rule that keeps it from happening. Of a request, its story says it."""

    moves: str
    """Why no request moves from one instance to another, or that one does."""
    instances: dict[InstanceId, str]
    """Of those that serve or drain: why none of its requests leaves it, or that they do."""
    starts: str
    """Why no instance is started."""


class MigrateBody(msgspec.Struct, frozen=True, kw_only=True):
    request_id: str
    """As its client was given it."""
    target: str | int | None = None
    """The instance that it is to move to. Null, or left out: wherever it had best go, by room, by what is cached there
    of its prompt, and by how soon it would be served."""


class MovedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How a move went, once it is over; of several sequences the largest number, or the sum."""

    ok: Literal[True] = True
    source: str
    target: str
    stages: int
    """Copy rounds, the hand-over included."""
    bytes: int
    blocks_skipped: int
    """Blocks that the target had in its prefix cache already."""
    copy_ms: float
    """The request kept decoding."""
    handover_ms: float
    """Out of the source's batch to in the target's."""
    downtime_ms: float | None
    """What the client saw: the gap at the hand-over, less one normal decode step. Null if no token has come since."""


class StartBody(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    """From 1 to 64."""
    replaces: InstanceId | None = None
    """An instance that is to be drained when the new one runs, which begins with its role; `count` is 1 then. Null: new
    ones have the roles that are missing."""


class StartedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    ok: Literal[True] = True
    starting: int


class ClassesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """With `--classes`: of all front ends together, each class and tenant of whom there was a request."""

    classes: list[ClassRow]


class RoleBody(msgspec.Struct, frozen=True, kw_only=True):
    role: Role
    """What it is to be preferred for."""


class RoleAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the instance is preferred for from now on, or until it ends."""

    ok: Literal[True] = True
    id: InstanceId
    role: Role


class ReloadedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """So many there are in the classes file now."""

    ok: Literal[True] = True
    classes: int
    tenants: int


class RecordBody(msgspec.Struct, frozen=True, kw_only=True):
    on: bool


class RecordAnswer(msgspec.Struct, frozen=True, kw_only=True):
    ok: Literal[True] = True
    on: bool
    folder: str | None
    """Of the run that is being recorded, on the server's machine; null: none is."""


class StateAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the instance is from now on."""

    ok: Literal[True] = True
    id: InstanceId
    state: InstanceState


class DrainsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Drains under way, and the last that ended."""

    drains: list[DrainReport]


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """As OpenAI has it."""

    message: str
    """One sentence."""
    type: str
    param: None = None
    code: int
    """The HTTP status."""


class RefusalAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Whatever was not done."""

    ok: Literal[False] = False
    reason: str
    """The same sentence as in `error`."""
    error: ErrorDetail


class AliveAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The front end that was asked can answer. It may have no instance: `GET /health` says that."""

    alive: bool = True


class IndexAnswer(msgspec.Struct, frozen=True, kw_only=True):
    server: Literal["llumnix"] = "llumnix"
    routes: dict[str, str]
    """`METHOD PATH`, and what it is for."""
