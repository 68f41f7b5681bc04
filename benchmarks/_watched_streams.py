"""Gaps between tokens while somebody watches the live page and while nobody does, in turns of some seconds.

Two runs, one with viewers and one without, are a tenth apart when nothing differs: what else the machine does meets one
of them. So here streams never end, and viewers come and leave while they run. The halves of a pair are seconds apart;
what comes first alternates (off on, on off, off on …), so that what grows or shrinks meanwhile meets both alike; and
there are many pairs, of which the median counts, with the interval that drawing from them again gives it. A half begins
when those who come or leave have done so: their coming is not their watching. With no viewers it is seen how far apart
halves are that do not differ.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import numpy as np
from _viewers import CLUSTER, viewers
from frame.stream import COMPLETIONS, Output, exactly, open_session, served_model, stream
from numpy.typing import NDArray

STREAMS = 12
TOKENS = 1000
WARM_S = 10.0
HALF_S = 4.0
SETTLE_S = 0.5
"""After the last viewer came or left."""


class Gaps:
    """Those that are taken just now, in seconds."""

    def __init__(self) -> None:
        self.taken: list[float] | None = None

    def on_piece(self, output: Output) -> None:
        if self.taken is not None and len(output.times_s) > 1:
            self.taken.append(output.times_s[-1] - output.times_s[-2])

    async def half_s(self) -> list[float]:
        await asyncio.sleep(SETTLE_S)
        taken: list[float] = []
        self.taken = taken
        await asyncio.sleep(HALF_S)
        self.taken = None
        return taken


@asynccontextmanager
async def endless_streams(url: str) -> AsyncIterator[Gaps]:
    """Each goes on as another one when it ends, not all at once."""
    gaps, rng = Gaps(), random.Random(1)
    async with open_session(url) as session:
        model = await served_model(session)

        async def endless(tokens: int) -> None:
            while True:
                prompt = [rng.randrange(10, 250) for _ in range(40)]
                output = await stream(session, COMPLETIONS, exactly(model, prompt, tokens), on_piece=gaps.on_piece)
                assert output.complete, output.failure
                tokens = TOKENS

        async with asyncio.TaskGroup() as group:
            running = [group.create_task(endless(TOKENS * place // STREAMS)) for place in range(1, STREAMS + 1)]
            await asyncio.sleep(WARM_S)
            yield gaps
            for task in running:
                task.cancel()


class Pair(NamedTuple):
    """Gaps in seconds, of all streams."""

    alone: NDArray[np.float64]
    watched: NDArray[np.float64]

    @property
    def ratio(self) -> float:
        """Of the 99th percentile: watched to alone."""
        return p99_ms([self.watched]) / p99_ms([self.alone])


async def pairs(url: str, count: int, number: int) -> list[Pair]:
    """`count` viewers watch in one half of each."""
    found = []
    with viewers(url, CLUSTER, count) as watching:
        async with endless_streams(url) as gaps:
            for pair in range(number):
                alone: list[float] = []
                if pair % 2 == 0:
                    alone = await gaps.half_s()
                    await watching.come()
                watched = await gaps.half_s()
                if pair % 2:
                    await watching.leave()
                    alone = await gaps.half_s()
                found.append(Pair(np.array(alone), np.array(watched)))
    return found


def p99_ms(halves: Iterable[NDArray[np.float64]]) -> float:
    return 1e3 * float(np.quantile(np.concatenate([*halves]), 0.99))


def ratio_of_all(pairs: Sequence[Pair]) -> float:
    return p99_ms(pair.watched for pair in pairs) / p99_ms(pair.alone for pair in pairs)
