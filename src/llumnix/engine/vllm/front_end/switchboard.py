"""A front end's side of the control plane: hears the instances and the scheduler, and asks them things."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic
from typing import Any, Literal, assert_never

from llumnix.control.class_counts import ClassRow, add_up
from llumnix.control.messages import Doubt
from llumnix.control.scheduler_events import AskWhereCached, ReplayRest
from llumnix.engine.port import FrontEndSpec
from llumnix.engine.vllm.front_end.by_hand import ByHand
from llumnix.engine.vllm.front_end.client import LlumnixClient
from llumnix.engine.vllm.front_end.client_ids import is_text
from llumnix.engine.vllm.front_end.loud_tasks import LoudTasks
from llumnix.engine.vllm.front_end.members import Strangers
from llumnix.engine.vllm.front_end.questions import AnyQuestion, Questions
from llumnix.engine.vllm.front_end.stream_log import StreamLog
from llumnix.journal.journal import ALL_ENTRIES, EntryFilter, Reading, read_together
from llumnix.journal.stories import RequestStories, told_together
from llumnix.report.records import MigrationRecord
from llumnix.types import InstanceId, InstanceState, by_number
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import FrontEndLost, InstanceGone, InstanceStarting, ReadJournal, Report
from llumnix.wire.outbox import Mail
from llumnix.wire.to_front_end import (
    Answer,
    ClassesListed,
    DoYourPart,
    DrainReports,
    Errand,
    JournalRead,
    ListClasses,
    ListMigrations,
    MigrateAnswer,
    MigrateByHand,
    Migrations,
    PartDone,
    PrefixesChanged,
    RequestRow,
    Requests,
    ScalingStatus,
    SchedulerAlive,
    StoryTold,
    TellStory,
    ToFrontEnd,
)
from llumnix.wire.to_instance import ListRequests
from llumnix.wire.to_scheduler import FoundCached, MoveAnswer, ReplayedElsewhere

_SCHEDULER_SILENT_S = 2.0
_RECORDS_AT_ONCE = 500


class Switchboard:
    """Made and used on the event loop; only the mailbox's thread, which calls `hear`, is elsewhere."""

    def __init__(self, spec: FrontEndSpec, mailbox: Mailbox[ToFrontEnd], client: LlumnixClient, log: StreamLog) -> None:
        self.spec = spec
        self.client = client
        self.log = log
        self.strangers = Strangers()
        self.scheduler_pid: int | None = None
        self.scheduler_late_messages = 0
        self.scaling: ScalingStatus | None = None
        self._scheduler_seen_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._questions = Questions(mailbox.post, mailbox.address)
        self._tasks = LoudTasks()
        self.parts: dict[str, Callable[[tuple[str, ...]], Awaitable[int]]] = {}
        """What this front end does of `DoYourPart`; to be set before the mailbox is started."""
        self.load: Callable[[], int] = lambda: 0
        """Requests that it serves, if vLLM counts them."""
        self.class_rows: Callable[[], tuple[ClassRow, ...]] = lambda: ()
        """What became of the requests of each class and tenant here; to be set as `parts`."""
        self._mailbox = mailbox
        self.post: Callable[[str, Mail], None] = mailbox.post
        self._by_hand = ByHand(client, log, mailbox.post, mailbox.address)

    @property
    def refused(self) -> int:
        """Connections of others than the server's own processes, here or to vLLM's sockets; always 0 on one machine."""
        doorkeeper = self.client.doorkeeper
        return self._mailbox.refused + (0 if doorkeeper is None else doorkeeper.refused)

    @property
    def malformed(self) -> int:
        """Messages that came here and are not for a front end, or none of ours."""
        return self._mailbox.malformed

    @property
    def unsent(self) -> int:
        """Messages to processes that read none any more, or have no address."""
        return self._mailbox.outbox.dropped

    @property
    def late_outputs(self) -> int:
        """Of instances that were not to send them any more."""
        return self.client.machine.dropped

    @property
    def address(self) -> str:
        return self._mailbox.address

    @property
    def _others(self) -> list[str]:
        """The mailboxes of the other front ends."""
        return [a for index, a in enumerate(self.spec.book.all_front_ends) if index != self.spec.index]

    @property
    def scheduler_state(self) -> Literal["starting", "running", "lost"]:
        if self.scheduler_pid is None:
            return "starting"
        return "running" if monotonic() - self._scheduler_seen_s < _SCHEDULER_SILENT_S else "lost"

    # -- questions

    async def ask_one(self, address: str, question: AnyQuestion, timeout_s: float) -> Any | None:
        """The answer of one mailbox, or None when none came in time or its owner, a front end, died."""
        answers = await self._questions.ask([address], question, timeout_s)
        return answers[0] if answers else None

    async def list_requests(self, like: str = "", timeout_s: float = 2.0) -> list[tuple[InstanceId, RequestRow]]:
        """Every request of every instance; `like`: whose client's id has this in it. If both sides of a hand-over tell
        of it, the source's row is dropped."""
        addresses = [member.info.control for member in self.client.members.known.values()]
        answers = await self._questions.ask(addresses, ListRequests(like=like), timeout_s)
        found: dict[str, tuple[InstanceId, RequestRow]] = {}
        for answer in sorted(answers, key=lambda answer: by_number(answer.instance)):
            for row in answer.rows:
                known = found.get(row.request)
                if known is None or known[1].migrations < row.migrations:
                    found[row.request] = (answer.instance, row)
        return list(found.values())

    async def list_migrations(self, limit: int, timeout_s: float = 2.0) -> list[MigrationRecord]:
        """Of all front ends, newest first."""
        answers = await self._questions.ask(self._others, ListMigrations(limit=limit), timeout_s)
        records = [*self.log.moves.newest(limit), *(record for answer in answers for record in answer.records)]
        records.sort(key=lambda record: record.at_s, reverse=True)
        return records[:limit]

    async def all_others(self, part: str, request_ids: Iterable[str] = (), timeout_s: float = 3.0) -> int:
        """Has every other front end do its part of something; the sum of what they counted. One that is late does it
        later, one that is being restarted begins with it."""
        given = tuple(request_ids)
        ids = tuple(filter(is_text, given))  # no request has another one
        if given and not ids:
            return 0  # not none, which may mean all
        answers = await self._questions.ask(self._others, DoYourPart(part=part, request_ids=ids), timeout_s)
        return sum(answer.count for answer in answers)

    async def migrate(self, row: RequestRow, target: InstanceId | None, timeout_s: float) -> MigrateAnswer:
        """Moves one sequence, by way of the front end that owns its stream, which chooses where to if nobody did."""
        owner, order = self.spec.book.front_end(row.front_end), MigrateByHand(request=row.request, target=target)
        answer = await self.ask_one(owner, order, timeout_s)
        why = f"the front end that streams it died, or did not answer within {timeout_s:g} s"
        return answer or MigrateAnswer(query=0, status=504, why=why)

    async def read_journals(
        self, places: dict[str, int] | None, limit: int, wanted: EntryFilter = ALL_ENTRIES, timeout_s: float = 2.0
    ) -> Reading:
        """Of all front ends and of the scheduler; see `Journal.read`."""
        asked = [*self._others, self.spec.book.scheduler]
        question = ReadJournal(places=places, limit=limit, wanted=wanted)
        answers = await self._questions.ask(asked, question, timeout_s)
        parts = [self.log.stories.journal.read(places, limit, wanted), *(answer.part for answer in answers)]
        return read_together(places, parts, limit)

    async def tell_story(self, request: str, timeout_s: float = 2.0) -> RequestStories:
        """Of all sequences of the request, as its client knows it."""
        answers = await self._questions.ask(self._others, TellStory(request=request), timeout_s)
        mine = self.log.stories.tell(request, monotonic())
        return told_together([mine, *(answer.told for answer in answers)])

    async def list_classes(self, timeout_s: float = 2.0) -> list[ClassRow]:
        """Of all front ends together."""
        answers = await self._questions.ask(self._others, ListClasses(), timeout_s)
        return add_up([self.class_rows(), *(answer.rows for answer in answers)])

    async def _do_my_part(self, message: DoYourPart) -> None:
        count = await self.parts[message.part](message.request_ids)
        self.post(message.reply_to, PartDone(query=message.query, count=count))

    async def _tell_migrations(self, asked: ListMigrations) -> None:
        """In parts: a long list must not keep the streams of clients waiting."""
        records = self.log.moves.newest(asked.limit)
        for first in range(0, max(1, len(records)), _RECORDS_AT_ONCE):
            part = tuple(records[first : first + _RECORDS_AT_ONCE])
            more = first + _RECORDS_AT_ONCE < len(records)
            self.post(asked.reply_to, Migrations(query=asked.query, records=part, more=more))
            await asyncio.sleep(0)

    # -- what comes in

    def hear(self, message: ToFrontEnd) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self._take, message)

    def _take(self, message: ToFrontEnd) -> None:
        match message:
            case Report() | InstanceStarting() | InstanceGone():
                self._on_instance(message)
            case PrefixesChanged():
                self.client.streams.prefixes_told(message.instance, message.news)
            case Doubt():
                self.client.streams.doubted(message)
            case SchedulerAlive():
                self.scheduler_pid, self.scaling = message.pid, message.scaling
                self.scheduler_late_messages = message.late_messages
                self._scheduler_seen_s = monotonic()
            case MoveAnswer():
                self._by_hand.move_answered(message)
            case FrontEndLost():
                self._questions.answers_no_more(self.spec.book.front_end(message.front_end))
            case Requests() | Migrations() | DrainReports() | JournalRead() | StoryTold() | ClassesListed():
                self._questions.answered(message)
            case Answer() | MigrateAnswer() | PartDone():
                self._questions.answered(message)
            case AskWhereCached() | ReplayRest() | MigrateByHand() | DoYourPart():
                self._do(message)
            case ListMigrations() | ReadJournal() | TellStory() | ListClasses():
                self._do(message)
            case _:
                assert_never(message)

    def _on_instance(self, message: Report | InstanceStarting | InstanceGone) -> None:
        match message:
            case Report():
                self.strangers.starting.pop(message.info.id, None)
                self.client.on_report(message)
            case InstanceStarting():
                if self.client.members.is_unknown(message.instance):
                    self.strangers.starting[message.instance] = message
            case InstanceGone():
                self.strangers.starting.pop(message.instance, None)
                state = InstanceState.STOPPED if message.expected else InstanceState.LOST
                self.strangers.ended(message, state)
                known = self.client.members.known.get(message.instance)
                self.client.on_gone(message)
                if known is not None:
                    self._mailbox.forget(known.info.control)
            case _:
                assert_never(message)

    def _do(self, message: Errand) -> None:
        match message:
            case AskWhereCached():
                book, where = self.spec.book, self.client.machine.where_cached(message.instance)
                found = FoundCached(instance=message.instance, where=where, front_ends=len(book.all_front_ends))
                self.post(book.scheduler, found)
            case ReplayRest():
                count = self.client.streams.drive_out(message.instance, message.reason)
                self.post(self.spec.book.scheduler, ReplayedElsewhere(instance=message.instance, count=count))
            case MigrateByHand():
                self._by_hand.start(message)
            case ListMigrations():
                self._tasks.spawn(self._tell_migrations(message))
            case ReadJournal():
                part = self.log.stories.journal.read(message.places, message.limit, message.wanted)
                self.post(message.reply_to, JournalRead(query=message.query, part=part))
            case TellStory():
                told = self.log.stories.tell(message.request, monotonic())
                self.post(message.reply_to, StoryTold(query=message.query, told=told))
            case ListClasses():
                self.post(message.reply_to, ClassesListed(query=message.query, rows=self.class_rows()))
            case DoYourPart():
                self._tasks.spawn(self._do_my_part(message))
            case _:
                assert_never(message)
