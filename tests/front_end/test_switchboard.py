"""Questions of a front end to others, which may die before they answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

pytest.importorskip("vllm")

from request_rows import row

from llumnix.config import PolicyConfig
from llumnix.control.class_counts import ClassRow
from llumnix.control.front_end import FrontEndMachine
from llumnix.control.front_end_events import Outputs
from llumnix.control.scheduler_events import AskWhereCached
from llumnix.engine.vllm.front_end import stream_log
from llumnix.engine.vllm.front_end.questions import Questions
from llumnix.engine.vllm.front_end.switchboard import Switchboard
from llumnix.journal.journal import ALL_ENTRIES, Journal
from llumnix.journal.stories import Stories
from llumnix.report.records import MigrationRecord
from llumnix.types import InstanceId, RequestId
from llumnix.wire.mailbox import Mailbox
from llumnix.wire.news import FrontEndLost, InstanceGone, ReadJournal
from llumnix.wire.outbox import Mail
from llumnix.wire.to_front_end import (
    FRONT_END_MAIL,
    ClassesListed,
    DoYourPart,
    JournalRead,
    ListClasses,
    ListMigrations,
    MigrateAnswer,
    Migrations,
    PartDone,
    StoryTold,
    TellStory,
    ToFrontEnd,
)
from llumnix.wire.to_instance import ListRequests
from llumnix.wire.to_scheduler import SCHEDULER_MAIL, FoundCached, ToScheduler

ROW = row("r", "c", front_end=1)


@pytest.fixture
async def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Switchboard]:
    monkeypatch.setattr(stream_log, "Metrics", SimpleNamespace)  # the real ones are of a process, not of a test
    book = SimpleNamespace(front_end=lambda index: f"ipc://{tmp_path}/front-{index}", all_front_ends=("f0", "f1"))
    client = SimpleNamespace(streams=SimpleNamespace(), members=SimpleNamespace(known={}))

    def hear(message: ToFrontEnd) -> None:
        made.hear(message)

    mailbox = Mailbox(book.front_end(0), FRONT_END_MAIL, hear)
    log = stream_log.StreamLog(Journal("f0"))
    made = Switchboard(SimpleNamespace(index=0, book=book), mailbox, client, log)  # type: ignore[arg-type]
    mailbox.start()
    yield made
    mailbox.close()


def tell(board: Switchboard, tmp_path: Path, message: Mail) -> None:
    """From another process's mailbox."""
    sender = Mailbox(f"ipc://{tmp_path}/somebody", FRONT_END_MAIL, lambda _: None)
    sender.start()
    sender.post(board.address, message)
    sender.close()


async def test_move_is_not_waited_for_when_the_front_end_that_streams_it_dies(
    board: Switchboard, tmp_path: Path
) -> None:
    asked = asyncio.create_task(board.migrate(ROW, InstanceId("i1"), timeout_s=60.0))
    await asyncio.sleep(0)
    tell(board, tmp_path, FrontEndLost(front_end=1))
    async with asyncio.timeout(10):
        answer = await asked
    assert (answer.status, answer.record) == (504, None)
    assert answer.why.startswith("the front end that streams it died")


async def test_death_of_another_front_end_does_not_matter(board: Switchboard, tmp_path: Path) -> None:
    asked = asyncio.create_task(board.migrate(ROW, InstanceId("i1"), timeout_s=60.0))
    await asyncio.sleep(0)
    tell(board, tmp_path, FrontEndLost(front_end=2))
    (query,) = board._questions._open
    tell(board, tmp_path, MigrateAnswer(query=query, status=409, why="it has ended"))
    async with asyncio.timeout(10):
        answer = await asked
    assert (answer.status, answer.why) == (409, "it has ended")


async def test_front_end_that_answers_and_then_dies_does_not_end_the_question_to_others() -> None:
    posted: dict[str, int] = {}
    questions = Questions(lambda address, mail: posted.update({address: mail.query}), "f0")  # type: ignore[union-attr]
    asked = asyncio.create_task(questions.ask(["f1", "f2"], ListClasses(), timeout_s=60.0))
    await asyncio.sleep(0)
    first, second = (ClassesListed(query=posted[name], rows=()) for name in ("f1", "f2"))
    questions.answered(first)
    questions.answers_no_more("f1")
    for _ in range(5):
        await asyncio.sleep(0)
    questions.answered(second)
    async with asyncio.timeout(10):
        assert await asked == [first, second]
    assert questions._open == {}


async def test_it_says_where_prompts_of_an_instance_that_drains_are_cached(board: Switchboard, tmp_path: Path) -> None:
    """Also if it has none there: then nobody waits for it."""
    told: asyncio.Queue[ToScheduler] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def hear(mail: ToScheduler) -> None:
        loop.call_soon_threadsafe(told.put_nowait, mail)

    scheduler = Mailbox(f"ipc://{tmp_path}/scheduler", SCHEDULER_MAIL, hear)
    scheduler.start()
    board.spec.book.scheduler = scheduler.address  # type: ignore[misc]
    known = {InstanceId("i0"): {RequestId("r"): InstanceId("i1")}}
    board.client.machine = SimpleNamespace(where_cached=lambda one: known.get(one, {}))  # type: ignore[assignment]
    for name, where in (("i0", {"r": "i1"}), ("i1", {})):
        tell(board, tmp_path, AskWhereCached(instance=InstanceId(name)))
        async with asyncio.timeout(10):
            assert await told.get() == FoundCached(instance=InstanceId(name), where=where, front_ends=2)  # type: ignore[arg-type]
    scheduler.close()


async def test_question_without_an_answer_ends_in_time(board: Switchboard) -> None:
    answer = await board.migrate(ROW, InstanceId("i1"), timeout_s=0.05)
    assert answer.status == 504


def record(number: int) -> MigrationRecord:
    instances: dict[str, Any] = {"source": InstanceId("i0"), "target": InstanceId("i1")}
    return MigrationRecord(
        at_s=float(number), request_id=f"cmpl-{number}", reason="by hand", outcome="moved", **instances
    )


async def test_long_list_of_moves_comes_in_parts_and_is_put_together(board: Switchboard, tmp_path: Path) -> None:
    """Front end 1 is a mailbox that passes the question on to the one here, and its answers back."""
    for number in range(1200):
        board.log.moves.add(record(number))
    parts: list[int] = []

    def other(message: Mail) -> None:
        if isinstance(message, ListMigrations):
            mailbox.post(board.address, msgspec.structs.replace(message, reply_to=mailbox.address))
        elif isinstance(message, Migrations):
            parts.append(len(message.records))
            mailbox.post(board.address, message)

    mailbox = Mailbox(f"ipc://{tmp_path}/front-1", FRONT_END_MAIL, other)
    mailbox.start()
    board.spec.book.all_front_ends = (board.address, mailbox.address)  # type: ignore[misc]
    found = await board.list_migrations(10_000, timeout_s=10.0)
    mailbox.close()
    assert parts == [500, 500, 200]
    assert [record.at_s for record in found[:4]] == [1199.0, 1199.0, 1198.0, 1198.0]
    assert len(found) == 2400


async def test_story_is_asked_of_all_front_ends_and_the_journal_of_the_scheduler_too(
    board: Switchboard, tmp_path: Path
) -> None:
    """One story is known here, one at another front end; the scheduler answers nobody's question in time."""
    theirs = Stories(Journal("f1"))
    for stories, name in ((board.log.stories, "cmpl-1"), (theirs, "cmpl-2")):
        stories.began(1.0, name, f"{name}-0", 5).parked(2.0, "no instance can take it")

    def other(message: Mail) -> None:
        if isinstance(message, TellStory):
            answer = msgspec.structs.replace(theirs.tell(message.request, 3.0), kept=7)
            mailbox.post(message.reply_to, StoryTold(query=message.query, told=answer))
        elif isinstance(message, ReadJournal):
            part = theirs.journal.read(message.places, message.limit, message.wanted)
            mailbox.post(message.reply_to, JournalRead(query=message.query, part=part))

    mailbox = Mailbox(f"ipc://{tmp_path}/front-1", FRONT_END_MAIL, other)
    mailbox.start()
    book = board.spec.book
    book.all_front_ends, book.scheduler = (board.address, mailbox.address), f"ipc://{tmp_path}/scheduler"  # type: ignore[misc]
    told = {name: await board.tell_story(name) for name in ("cmpl-1", "cmpl-2", "cmpl-3")}
    reading = await board.read_journals({"s": 4}, 10, timeout_s=1.0)
    mailbox.close()
    found = {name: [story.request for story in known.stories] for name, known in told.items()}
    assert found == {"cmpl-1": ["cmpl-1"], "cmpl-2": ["cmpl-2"], "cmpl-3": []}
    assert {known.kept for known in told.values()} == {7}
    assert [(entry.by, entry.request) for entry in reading.entries] == [("f0", "cmpl-1"), ("f1", "cmpl-2")]
    assert reading.places == {"f0": 1, "f1": 1, "s": 4}


async def test_classes_of_all_front_ends_are_added_up(board: Switchboard, tmp_path: Path) -> None:
    def other(message: Mail) -> None:
        if isinstance(message, ListClasses):
            rows = (ClassRow(cls="c", tenant="a", held=1), ClassRow(cls="c", tenant="b", held=5))
            mailbox.post(message.reply_to, ClassesListed(query=message.query, rows=rows))

    board.class_rows = lambda: (ClassRow(cls="c", tenant="a", held=2),)
    mailbox = Mailbox(f"ipc://{tmp_path}/front-1", FRONT_END_MAIL, other)
    mailbox.start()
    board.spec.book.all_front_ends = (board.address, mailbox.address)  # type: ignore[misc]
    rows = await board.list_classes(timeout_s=10.0)
    mailbox.close()
    assert [(row.tenant, row.held) for row in rows] == [("a", 3), ("b", 5)]


async def test_another_front_end_is_told_what_is_known_here(board: Switchboard, tmp_path: Path) -> None:
    board.log.stories.began(1.0, "cmpl-1", "cmpl-1-0", 5).parked(2.0, "no instance can take it")
    heard: asyncio.Queue[Mail] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def hear(mail: ToFrontEnd) -> None:
        loop.call_soon_threadsafe(heard.put_nowait, mail)

    mailbox = Mailbox(f"ipc://{tmp_path}/front-1", FRONT_END_MAIL, hear)
    mailbox.start()
    board._take(TellStory(query=1, request="cmpl-1", reply_to=mailbox.address))
    board._take(ReadJournal(query=2, reply_to=mailbox.address, places=None, limit=5, wanted=ALL_ENTRIES))
    board.class_rows = lambda: (ClassRow(cls="c", tenant="a", held=2),)
    board._take(ListClasses(query=3, reply_to=mailbox.address))
    async with asyncio.timeout(10):
        story, journal, classes = await heard.get(), await heard.get(), await heard.get()
    mailbox.close()
    assert isinstance(story, StoryTold)
    assert isinstance(journal, JournalRead)
    assert [told.request for told in story.told.stories] == ["cmpl-1"]
    assert journal.part.entries == story.told.stories[0].entries
    assert classes == ClassesListed(query=3, rows=board.class_rows())


async def test_answer_to_the_front_end_that_died_here_is_not_taken_for_ours(board: Switchboard) -> None:
    asked = asyncio.create_task(board.migrate(ROW, InstanceId("i1"), timeout_s=0.05))
    await asyncio.sleep(0)
    for query in range(1, 100):
        board._take(MigrateAnswer(query=query, status=409, why="not asked by this one"))
    assert (await asked).status == 504


async def test_instance_that_fell_silent_is_listed_once_with_what_was_told_of_it_last(board: Switchboard) -> None:
    """The scheduler and the launcher both tell of it."""
    board.client.on_gone = lambda gone: None  # type: ignore[method-assign]
    for instance, why in (("i1", "silent"), ("i2", "silent"), ("i1", "silent, and does not end")):
        board._take(InstanceGone(instance=InstanceId(instance), index=1, why=why, expected=False))
    told = [(message.instance, message.why) for message, _ in board.strangers.gone]
    assert told == [("i1", "silent, and does not end"), ("i2", "silent")]


async def test_way_to_an_instance_that_is_gone_is_closed(board: Switchboard, tmp_path: Path) -> None:
    control = f"ipc://{tmp_path}/i1"
    board.client.on_gone = lambda gone: None  # type: ignore[method-assign]
    board.client.members.known[InstanceId("i1")] = SimpleNamespace(info=SimpleNamespace(control=control))  # type: ignore[assignment]
    board.post(control, ListRequests(query=1, reply_to=board.address))
    assert control in board._mailbox.outbox._sockets
    board._take(InstanceGone(instance=InstanceId("i1"), index=1, why="silent", expected=False))
    assert control not in board._mailbox.outbox._sockets


async def test_id_that_no_request_can_have_is_told_to_nobody(board: Switchboard, tmp_path: Path) -> None:
    """Half a character, which no message can have in it."""
    asked: list[tuple[str, ...]] = []

    def other(message: Mail) -> None:
        if isinstance(message, DoYourPart):
            asked.append(message.request_ids)
            mailbox.post(board.address, PartDone(query=message.query, count=1))

    mailbox = Mailbox(f"ipc://{tmp_path}/front-1", FRONT_END_MAIL, other)
    mailbox.start()
    board.spec.book.all_front_ends = (board.address, mailbox.address)  # type: ignore[misc]
    assert await board.all_others("abort", ["cmpl-\ud800", "cmpl-1"], timeout_s=10.0) == 1
    assert await board.all_others("abort", ["cmpl-\ud800"], timeout_s=10.0) == 0, "to the other it would mean all"
    mailbox.close()
    assert asked == [("cmpl-1",)]


async def test_what_could_not_be_sent_or_came_too_late_is_told_to_who_counts(board: Switchboard) -> None:
    assert board.unsent == 0
    board.post("nowhere", ListRequests(reply_to=board.address, query=1))
    assert board.unsent == 1
    board.client.machine = FrontEndMachine(PolicyConfig())
    assert board.late_outputs == 0
    board.client.machine.handle(Outputs(0.0, InstanceId("i0"), RequestId("over"), 2, ("a", "b")))
    assert board.late_outputs == 2
