"""What the streams show: each look makes the whole picture, and what is different from the one before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import time
from typing import TypeVar

import msgspec
from msgspec import UNSET

from llumnix.api.bodies import InstanceRow, InstancesAnswer
from llumnix.api.frames import ClusterFrame, ClusterSample, RequestsFrame, SequenceRow, ServerFacts
from llumnix.engine.vllm.front_end.admin import looking
from llumnix.engine.vllm.front_end.page.feed import Picture
from llumnix.engine.vllm.front_end.slices import in_slices
from llumnix.engine.vllm.front_end.switchboard import Switchboard
from llumnix.report.records import MigrationRecord
from llumnix.types import InstanceId
from llumnix.wire.to_front_end import RequestRow

MOVES = 100
MOST_REQUESTS = 500
_OTHERS_TIMEOUT_S = 0.4
"""For moves of other front ends: one that is late tells of them next time."""

RowT = TypeVar("RowT")


class ClusterPictures:
    """Instances, their scheduler, and what moved."""

    def __init__(self, board: Switchboard, server: ServerFacts) -> None:
        self.sample: ClusterSample | None = None
        """The newest; to be set by whoever takes them."""
        self._board = board
        self._server = server
        self._before: ClusterFrame | None = None

    async def look(self) -> Picture:
        moves = await self._board.list_migrations(MOVES, timeout_s=_OTHERS_TIMEOUT_S)
        whole = _whole(await looking.instances(self._board), self._server, moves, self.sample)
        changes = _since(self._before, whole)
        self._before = whole
        return Picture(whole, changes)


def _whole(
    now: InstancesAnswer, server: ServerFacts, moves: list[MigrationRecord], sample: ClusterSample | None
) -> ClusterFrame:
    return ClusterFrame(
        whole=True,
        at=time(),
        server=server,
        instances=now.instances,
        away=[],
        scheduler=UNSET if now.scheduler is None else now.scheduler,
        scaling=now.scaling,
        freeness_limits=UNSET if now.freeness_limits is None else now.freeness_limits,
        moves=moves,
        sample=UNSET if sample is None else sample,
    )


def _since(before: ClusterFrame | None, now: ClusterFrame) -> ClusterFrame:
    """The first picture is one change."""
    if before is None:
        return now
    told = {_key_of(move) for move in before.moves}
    rows, away = differences(_by_id(before.instances), _by_id(now.instances))
    return ClusterFrame(
        whole=False,
        at=now.at,
        instances=rows,
        away=away,
        scheduler=UNSET if now.scheduler == before.scheduler else now.scheduler,
        scaling=UNSET if now.scaling == before.scaling else now.scaling,
        freeness_limits=UNSET if now.freeness_limits == before.freeness_limits else now.freeness_limits,
        moves=[move for move in now.moves if _key_of(move) not in told],
        sample=UNSET if now.sample == before.sample else now.sample,
    )


def _by_id(rows: Iterable[InstanceRow]) -> dict[InstanceId, InstanceRow]:
    return {row.id: row for row in rows}


def _key_of(move: MigrationRecord) -> tuple[float, str, str]:
    return move.at_s, move.request_id, move.source


class RequestPictures:
    """The requests with the most tokens: these are what moves, and what memory goes to."""

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        self._before: dict[str, SequenceRow] = {}

    async def look(self) -> Picture:
        found = await self._board.list_requests()
        found.sort(key=lambda each: (-each[1].prompt_tokens - each[1].output_tokens, each[1].request))
        largest = found[:MOST_REQUESTS]
        now = {str(row.request): _sequence(at, row) async for some in in_slices(largest) for at, row in some}
        rows, away = differences(self._before, now)
        self._before = now
        at, total = time(), len(found)
        return Picture(
            RequestsFrame(whole=True, at=at, total=total, requests=list(now.values()), away=[]),
            RequestsFrame(whole=False, at=at, total=total, requests=rows, away=away),
        )


def _sequence(instance: InstanceId, row: RequestRow) -> SequenceRow:
    return SequenceRow(key=row.request, **msgspec.structs.asdict(looking.request(instance, row)))


KeyT = TypeVar("KeyT")


def differences(before: Mapping[KeyT, RowT], now: Mapping[KeyT, RowT]) -> tuple[list[RowT], list[KeyT]]:
    """Rows that are new or different, and keys of those that are gone."""
    rows = [row for key, row in now.items() if before.get(key) != row]
    return rows, [key for key in before if key not in now]
