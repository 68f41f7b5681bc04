"""Loads that do not wait for answers: a request that was sent late counts from when it was due."""

from __future__ import annotations

import argparse
import asyncio
import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import failover
import overhead
import pytest
from frame.stream import Output


class Late:
    """Sends nothing, and says that it did so when the first tokens came, all at once."""

    async def complete(self, body: bytes) -> Output:
        return Output(sent_s=1000.0, times_s=[1000.0])


async def test_streams_beside_each_other_count_from_when_each_was_due() -> None:
    side: Any = Late()
    outputs = await overhead.open_loop(side, [b""] * 3, [0.0, 0.01, 0.03])
    assert [after.sent_s - before.sent_s for before, after in pairwise(outputs)] == pytest.approx([0.01, 0.02])


@dataclass
class Stream:
    output: Output


@dataclass
class SlowClients:
    """Takes its time for each request; all first tokens come at one moment."""

    streams: list[Stream] = field(default_factory=list)

    def start(self, prompt_tokens: int, output_tokens: int) -> Stream:
        self.streams.append(Stream(Output(sent_s=1000.0, times_s=[1000.0])))
        return self.streams[-1]

    async def all_ended(self) -> None: ...


async def test_requests_beside_a_dying_scheduler_arrive_by_the_clock() -> None:
    clients: Any = SlowClients()
    began_s = asyncio.get_running_loop().time()
    ttfts_s = await failover._offer(clients, argparse.Namespace(rate=200.0, seconds=0.2))
    rng = random.Random(7)
    due_s: list[float] = []
    for _ in ttfts_s:
        due_s.append((due_s[-1] if due_s else began_s) + rng.expovariate(200.0))
        rng.randint(20, 300), rng.randint(20, 60)
    assert len(due_s) > 10
    lateness_s = [1000.0 - at_s - ttft_s for at_s, ttft_s in zip(due_s, ttfts_s, strict=True)]
    assert lateness_s == pytest.approx([lateness_s[0]] * len(due_s)), "each at its own moment, however long others took"
