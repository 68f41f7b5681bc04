"""What viewers get of a feed: the same frames, made once; and what those get who are late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from types import SimpleNamespace

import msgspec
import pytest

pytest.importorskip("vllm")

from llumnix.engine.vllm.front_end.page import feed as feeds
from llumnix.engine.vllm.front_end.page.feed import MOST_VIEWERS, Feed, Picture
from llumnix.engine.vllm.front_end.page.pictures import differences


class Frame(msgspec.Struct):
    whole: bool
    number: int


class Looks:
    """What there is to see is how often somebody has looked."""

    def __init__(self) -> None:
        self.count = 0
        self.looked = asyncio.Semaphore(0)
        """One for each time."""

    async def __call__(self) -> Picture:
        self.count += 1
        self.looked.release()
        return Picture(Frame(True, self.count), Frame(False, self.count))


Watched = tuple[Feed, Looks, Callable[[], None]]
"""The last: has the server end."""


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    looks, closing = Looks(), asyncio.Event()
    feed = Feed(looks, 0.01, closing.is_set)
    running = asyncio.create_task(feed.run())
    yield feed, looks, closing.set
    running.cancel()


def told(event: bytes) -> Frame:
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    return msgspec.json.decode(event[6:], type=Frame)


async def test_first_frame_is_whole_and_the_others_are_what_has_changed(watched: Watched) -> None:
    feed, _, _ = watched
    with feed.viewer():
        frames = feed.frames()
        got = [told(await anext(frames)) for _ in range(4)]
    assert [frame.whole for frame in got] == [True, False, False, False]
    numbers = [frame.number for frame in got]
    assert numbers == list(range(numbers[0], numbers[0] + 4))


async def test_whoever_missed_a_frame_gets_all_of_now(watched: Watched) -> None:
    feed, looks, _ = watched
    with feed.viewer():
        frames = feed.frames()
        first = told(await anext(frames))
        for _ in range(first.number + 3):
            await looks.looked.acquire()
        late = told(await anext(frames))
        assert late.whole
        assert late.number == looks.count, "the newest, not the next one"
        assert not told(await anext(frames)).whole


async def test_frames_are_written_once_for_all(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    feed, looks, _ = watched
    written: list[Frame] = []
    as_event = feeds.as_event

    def counted(frame: Frame) -> bytes:
        written.append(frame)
        return as_event(frame)

    monkeypatch.setattr(feeds, "as_event", counted)
    with ExitStack() as viewers:
        for _ in range(5):
            viewers.enter_context(feed.viewer())
        streams = [feed.frames() for _ in range(5)]
        for _ in range(3):
            events = [await anext(stream) for stream in streams]
            assert len(set(map(id, events))) == 1
    assert len(written) == 3
    assert looks.count <= 4


async def test_two_viewers_are_told_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop that tells them has tokens to send, too."""
    pauses_s: set[float] = set()

    async def pause(seconds: float) -> None:
        pauses_s.add(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(feeds, "asyncio", SimpleNamespace(sleep=pause, Event=asyncio.Event))
    between_pictures_s, apart_s = 1.0, feeds.APART
    feed = Feed(Looks(), between_pictures_s, lambda: False)
    running = asyncio.create_task(feed.run())

    async def watch(frames: AsyncIterator[bytes]) -> None:
        await anext(frames)
        await anext(frames)

    with ExitStack() as viewers:
        watching = []
        for _ in range(3):
            viewers.enter_context(feed.viewer())
            watching.append(asyncio.create_task(watch(feed.frames())))
            await asyncio.sleep(0)
        await asyncio.gather(*watching)
    running.cancel()
    assert pauses_s == {apart_s, 2 * apart_s, 3 * apart_s, between_pictures_s}


async def test_nobody_looks_while_nobody_watches(watched: Watched) -> None:
    feed, looks, _ = watched
    await asyncio.sleep(0.05)
    assert looks.count == 0
    with feed.viewer():
        await anext(feed.frames())
    await asyncio.sleep(0.03)
    before = looks.count
    await asyncio.sleep(0.05)
    assert looks.count == before
    with feed.viewer():
        assert told(await anext(feed.frames())).number > before, "not what the last one saw"


async def test_seats_are_counted_and_given_back(watched: Watched) -> None:
    feed, _, _ = watched
    with ExitStack() as viewers:
        for _ in range(MOST_VIEWERS):
            assert not feed.is_full
            viewers.enter_context(feed.viewer())
        assert feed.is_full
    assert not feed.is_full


async def test_stream_ends_with_the_server(watched: Watched) -> None:
    feed, _, close = watched
    with feed.viewer():
        frames = feed.frames()
        await anext(frames)
        close()
        async with asyncio.timeout(5):
            assert [event async for event in frames] == []


async def test_stream_ends_when_nobody_looks_any_more() -> None:
    feed = Feed(Looks(), 0.01, lambda: False)
    running = asyncio.create_task(feed.run())
    with feed.viewer():
        frames = feed.frames()
        await anext(frames)
        running.cancel()
        async with asyncio.timeout(5):
            assert len([event async for event in frames]) <= 1
    assert feed.is_over


def test_differences_of_rows() -> None:
    before = {"a": 1, "b": 2, "c": 3}
    assert differences(before, {"b": 2, "c": 4, "d": 5}) == ([4, 5], ["a"])
