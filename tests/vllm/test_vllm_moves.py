"""Moves at awkward moments: while queued, crossing each other, at the very end, with the client gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

import aiohttp
import pytest
from frame.admin import Admin
from frame.checked import Server
from frame.kinds import greedy
from frame.stream import COMPLETIONS, Output, Streaming, id_of, open_session, stream, streaming

pytestmark = pytest.mark.timeout(240)


async def test_crossing_moves_both_ways_at_once(server: Server) -> None:
    """As many streams on either instance, all of them swapped at the same moment."""
    async with open_session(server.url) as session:
        for _ in range(3):  # on a busy machine those of one side may have ended by then
            moved, crossed = await _cross(session, count=6)
            if {source for source, reason in moved if not reason} == {"i0", "i1"}:
                break
        else:
            pytest.fail(f"no moves crossed: {moved}")
        still = await asyncio.gather(*(stream(session, COMPLETIONS, greedy(n, 1200)) for n in range(len(crossed))))
    assert tokens_of(crossed) == tokens_of(still)


async def _cross(session: aiohttp.ClientSession, count: int) -> tuple[list[tuple[str | None, str]], list[Output]]:
    admin = Admin(session)
    streams = [Streaming(session, greedy(n, 1200), name=f"cross-{n}", engine=n % 2) for n in range(count)]
    await asyncio.gather(*(each.reaches(1) for each in streams))
    moved = await asyncio.gather(*(_swap(admin, each.id) for each in streams))
    return moved, [await each for each in streams]


def tokens_of(outputs: Iterable[Output]) -> list[list[int]]:
    return [output.sequences[0].tokens for output in outputs]


async def _swap(admin: Admin, request: str) -> tuple[str | None, str]:
    """Where it was, and why it stayed there; empty if it moved."""
    source = await admin.where(request)
    _, answer = await admin.migrate(request, "i1" if source == "i0" else "i0")
    return source, answer.get("reason", "")


async def test_request_may_end_while_it_moves(server: Server) -> None:
    """The move is asked for within the last tokens; whoever wins, the stream is whole."""
    async with open_session(server.url) as session:

        async def one(number: int) -> Output:
            last = Streaming(session, greedy(number, 100), name=f"ending-{number}")
            await last.reaches(92 + number % 8)
            await _swap(Admin(session), last.id)
            return await last

        ended = [await one(number) for number in range(24)]
        still = await asyncio.gather(*(stream(session, COMPLETIONS, greedy(n, 100)) for n in range(24)))
    assert tokens_of(ended) == tokens_of(still)
    server.wait_until_quiet()


async def test_nothing_is_left_when_the_client_goes_around_a_move(server: Server) -> None:
    """The connection is cut at forty moments, from before the move is asked for to long after."""
    async with open_session(server.url) as session:
        await asyncio.gather(*(_leave_around_a_move(session, number) for number in range(40)))
    server.wait_until_quiet()


async def _leave_around_a_move(session: aiohttp.ClientSession, number: int) -> None:
    name = f"leaving-{number}"
    admin = Admin(session)
    body = json.dumps(streaming(greedy(number, 2000)))
    headers = {"X-Request-Id": name, "Content-Type": "application/json"}
    async with session.post(COMPLETIONS, data=body, headers=headers) as response:
        await response.content.readline()
        source = await admin.where(id_of(COMPLETIONS, name))
        target = "i1" if source == "i0" else "i0"
        move = asyncio.create_task(admin.migrate(id_of(COMPLETIONS, name), target))
        await asyncio.sleep(0.003 * number)
        response.close()
    await move


async def test_the_same_request_cannot_be_moved_twice_at_once(server: Server) -> None:
    async with open_session(server.url) as session:
        admin = Admin(session)
        twice = Streaming(session, greedy(1, 600), name="twice")
        await twice.reaches(1)
        source = await admin.where(twice.id)
        target = "i1" if source == "i0" else "i0"
        answers = await asyncio.gather(*(admin.migrate(twice.id, target) for _ in range(4)))
        output = await twice
    statuses = sorted(status for status, _ in answers)
    assert statuses[0] == 200
    assert set(statuses[1:]) == {409}
    assert output.complete
    assert output.tokens == 600


async def test_nothing_moves_by_itself_when_migration_is_switched_off(server: Server) -> None:
    """All streams are sent to one instance, and stay there."""
    async with open_session(server.url) as session:
        streams = [Streaming(session, greedy(n, 150), name=f"heavy-{n}", engine=0) for n in range(8)]
        outputs = [await each for each in streams]
    assert all(output.complete for output in outputs)
    assert {row["cause"] for row in server.migrations()} <= {"by_hand"}
    assert not {row["request_id"] for row in server.migrations()} & {each.id for each in streams}
