"""What is long is made some rows at a time, and every stream goes on in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("vllm")

import msgspec
from fastapi.responses import StreamingResponse
from frame.pretend import PretendCluster
from frame.pretend_board import PretendBoard

from llumnix.engine.vllm.front_end.admin import looking, staying
from llumnix.engine.vllm.front_end.admin.answers import listing
from llumnix.engine.vllm.front_end.page.pictures import MOST_REQUESTS, RequestPictures
from llumnix.engine.vllm.front_end.slices import ROWS_AT_ONCE, in_slices

INSTANCES = 64


@pytest.fixture(scope="module")
def board() -> Any:
    """Of a cluster that has more requests than the page shows."""
    cluster = PretendCluster(INSTANCES)
    for _ in range(300):
        cluster.step()
    return PretendBoard(cluster)


async def turns_of(work: Callable[[], Awaitable[Any]]) -> int:
    """How often the event loop gets to something else until it is done."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    await asyncio.sleep(0)
    turns = 0
    await work()
    beside.cancel()
    return turns


async def test_tokens_go_out_while_the_largest_requests_are_shown(board: Any) -> None:
    assert await turns_of(RequestPictures(board).look) >= MOST_REQUESTS // ROWS_AT_ONCE


async def test_tokens_go_out_while_instances_are_shown(board: Any) -> None:
    assert await turns_of(lambda: looking.instances(board)) >= INSTANCES // ROWS_AT_ONCE - 1


async def test_tokens_go_out_while_it_is_said_of_each_instance_why_nothing_leaves_it(board: Any) -> None:
    assert await turns_of(lambda: staying.why_not(board)) >= INSTANCES // ROWS_AT_ONCE


@pytest.mark.parametrize("count", [0, 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1, 5 * ROWS_AT_ONCE])
async def test_a_list_is_whole_however_many_slices_it_has(count: int) -> None:
    answer = listing("rows", range(count))
    assert isinstance(answer, StreamingResponse)
    pieces: list[Any] = []

    async def read() -> None:
        pieces.extend([piece async for piece in answer.body_iterator])

    assert await turns_of(read) >= (count - 1) // ROWS_AT_ONCE
    assert msgspec.json.decode(b"".join(pieces)) == {"rows": list(range(count))}


async def test_no_slice_is_longer_than_the_others() -> None:
    slices = [list(some) async for some in in_slices(range(3 * ROWS_AT_ONCE + 1))]
    assert [len(some) for some in slices] == [*[ROWS_AT_ONCE] * 3, 1]
    assert [row for some in slices for row in some] == list(range(3 * ROWS_AT_ONCE + 1))
