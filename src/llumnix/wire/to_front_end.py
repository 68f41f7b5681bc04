"""All that a front end takes: from instances, the scheduler, the launcher, and other front ends."""

from __future__ import annotations

import msgspec

from llumnix.control.class_counts import ClassRow
from llumnix.control.messages import Doubt
from llumnix.control.prefix_table import PrefixNews
from llumnix.control.scaling import ScalingMode, ScalingStep
from llumnix.control.scheduler_events import AskWhereCached, DrainReport, ReplayRest
from llumnix.journal.journal import JournalPart
from llumnix.journal.stories import RequestStories
from llumnix.report.records import MigrationRecord
from llumnix.types import InstanceId, RequestId
from llumnix.wire.base import Question, Wire
from llumnix.wire.news import FrontEndLost, InstanceGone, InstanceStarting, ReadJournal, Report
from llumnix.wire.to_scheduler import MoveAnswer


class ScalingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Size of the cluster, and what auto-scaling makes of it."""

    mode: ScalingMode
    min_instances: int
    max_instances: int
    serving: int
    draining: int
    starting: int
    failing: int
    """Instances that failed to start more than once in a row, and are tried again."""
    now: str
    """What the last look found, in words."""
    last: ScalingStep | None
    starts: int
    """Instances that auto-scaling started so far; in advise mode, would have."""
    drains: int
    instance_seconds: float
    """Σ of the times that instances existed, since this scheduler began."""
    watched_s: float
    """For how long it has watched; `instance_seconds / watched_s` is the time-weighted number of instances."""


class SchedulerAlive(Wire, frozen=True, kw_only=True, tag=True):
    """The scheduler's heartbeat to the front ends (for `llumnix status`)."""

    pid: int
    scaling: ScalingStatus | None = None
    late_messages: int = 0
    """To it, since it began."""


class PrefixesChanged(Wire, frozen=True, kw_only=True, tag=True):
    """What the instance's prefix cache holds, by names of prompts' beginnings; goes before the report that is sent
    after it."""

    instance: InstanceId
    news: PrefixNews


class RequestRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request on one instance, as `GET /llumnix/v1/requests` shows it (`request` is the engine's id)."""

    request: RequestId
    client_id: str
    """The id that vLLM's server gave the sequence; `client_visible_id` makes the client's of it."""
    front_end: int
    priority: int
    prompt_tokens: int
    output_tokens: int
    state: str
    migrations: int
    why_pinned: str = ""


class Requests(Wire, frozen=True, kw_only=True, tag=True):
    """Answer to `ListRequests`."""

    query: int
    instance: InstanceId
    rows: tuple[RequestRow, ...]


class DrainReports(Wire, frozen=True, kw_only=True, tag=True):
    """Those under way, and the last ones that ended."""

    query: int
    reports: tuple[DrainReport, ...]


class Answer(Wire, frozen=True, kw_only=True, tag=True):
    """To whoever asked with a `query` number."""

    query: int
    ok: bool
    why: str = ""


class ListMigrations(Question, frozen=True, kw_only=True, tag=True):
    """Front end to front end: each keeps the records of its own streams."""

    limit: int


class Migrations(Wire, frozen=True, kw_only=True, tag=True):
    query: int
    records: tuple[MigrationRecord, ...]
    more: bool = False
    """A further part of the answer follows."""


class JournalRead(Wire, frozen=True, kw_only=True, tag=True):
    """Answer to `ReadJournal`."""

    query: int
    part: JournalPart


class TellStory(Question, frozen=True, kw_only=True, tag=True):
    """Front end to front end: each knows the requests that it streams, and streamed. Answered with a `StoryTold`."""

    request: str
    """As its client was given it."""


class StoryTold(Wire, frozen=True, kw_only=True, tag=True):
    query: int
    told: RequestStories


class ListClasses(Question, frozen=True, kw_only=True, tag=True):
    """Front end to front end: each admits its own requests. Answered with a `ClassesListed`."""


class ClassesListed(Wire, frozen=True, kw_only=True, tag=True):
    query: int
    rows: tuple[ClassRow, ...]


class DoYourPart(Question, frozen=True, kw_only=True, tag=True):
    """Front end to front end, of something that concerns all of them. Answered with a `PartDone`."""

    part: str
    """`follow`: read the state of the server anew; `abort`: these requests, or all; `load`: tell it; `classes`:
    their file was read again."""
    request_ids: tuple[str, ...] = ()
    """As clients know them."""


class PartDone(Wire, frozen=True, kw_only=True, tag=True):
    query: int
    count: int = 0
    """Requests that were aborted, or that are served."""


class MigrateByHand(Question, frozen=True, kw_only=True, tag=True):
    """Front end to the front end that owns the stream: move this engine request."""

    request: RequestId
    target: InstanceId | None
    """None: wherever it had best go."""


class MigrateAnswer(Wire, frozen=True, kw_only=True, tag=True):
    """`record` says what became of it; None when there was no attempt, and then `why` says why not."""

    query: int
    status: int
    """As HTTP: 200, 404, 409 or 504."""
    record: MigrationRecord | None = None
    why: str = ""


AnswerToFrontEnd = (
    Requests | DrainReports | Answer | Migrations | JournalRead | StoryTold | ClassesListed | PartDone | MigrateAnswer
)
"""To a question of this front end, whose number it repeats."""

Errand = (
    AskWhereCached | ReplayRest | ListMigrations | ReadJournal | TellStory | ListClasses | DoYourPart | MigrateByHand
)
"""What others want done, and have answered."""

ToFrontEnd = (
    Report
    | PrefixesChanged
    | InstanceStarting
    | InstanceGone
    | FrontEndLost
    | SchedulerAlive
    | Doubt
    | MoveAnswer
    | Errand
    | AnswerToFrontEnd
)

FRONT_END_MAIL: msgspec.msgpack.Decoder[ToFrontEnd] = msgspec.msgpack.Decoder(ToFrontEnd)
