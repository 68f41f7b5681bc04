"""A front end that places by time and by prefixes: whatever it heard, it decides the same when it hears it again, from
what is written of it; being asked where something would go leaves no trace."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from llumnix.config import PolicyConfig
from llumnix.control import front_end_events as fe
from llumnix.control.prefix_table import PrefixNews
from llumnix.control.replay import FrontEndBegin, FrontEndEntry, replay_recording
from llumnix.policy.prefix import chunk_ids
from llumnix.policy.snapshot import InstanceSnapshot, StepCost
from llumnix.types import HIGH, NORMAL, InstanceId, InstanceState, RequestId

CHUNK_TOKENS = 500
EVENTS = 400


class Front:
    """Hears at random of instances that come and go, idle ones most of them, so that many are equally good; some have
    not measured their steps, news of prefixes get lost, reports come late or twice."""

    def __init__(self, policy: str, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.written: list[bytes] = []
        self.begin = FrontEndBegin(policy=PolicyConfig(policy=policy))
        self.machine = self.begin.make(self.write)
        self.prompts = [[rng.randrange(1000) for _ in range(4000)] for _ in range(8)]
        self.costs = [
            StepCost(
                fixed_ms=rng.uniform(5, 20),
                prefill_token_us=rng.uniform(50, 100),
                request_us=rng.uniform(0, 100),
                context_token_us=rng.random(),
            )
            for _ in range(3)
        ]
        self.there = [InstanceId(f"i{k}") for k in range(4)]
        self.ids = 4
        self.seq: dict[InstanceId, int] = {}
        self.told: dict[InstanceId, int] = {}
        self.sent: dict[InstanceId, int] = {}
        self.requests: list[RequestId] = []

    def write(self, *happened: Any) -> None:
        self.written.append(msgspec.json.encode(self.begin.entry(*happened)))

    def report(self, at: float) -> None:
        rng, one = self.rng, self.rng.choice(self.there)
        self.seq[one] = self.seq.get(one, 0) + rng.choice((0, 1, 1, 1))
        running = rng.choice((0, 0, 0, rng.randrange(20)))
        snapshot = InstanceSnapshot(
            id=one,
            at=at,
            seq=self.seq[one],
            state=rng.choice([InstanceState.RUNNING] * 9 + [InstanceState.DRAINING]),
            total_blocks=500,
            free_blocks=500 - 10 * running,
            running=running,
            decoding=running,
            context_tokens=100 * running,
            high_running=min(running, rng.choice((0, 0, 1))),
            step_tokens=2048,
            prefix_chunk_tokens=CHUNK_TOKENS,
            step_cost=rng.choice((None, rng.choice(self.costs))),
            standing_s=rng.choice([0.0] * 9 + [3.0]),
            dispatches_seen=(rng.randint(0, self.sent.get(one, 0)),),
        )
        self.machine.handle(fe.Reported(at, snapshot))

    def arrival(self, at: float) -> None:
        rng, name = self.rng, RequestId(f"r{len(self.requests)}")
        self.requests.append(name)
        prompt = rng.choice(self.prompts)[: rng.randint(1, 4000)]
        priority = rng.choice((NORMAL, NORMAL, NORMAL, HIGH))
        chunks = chunk_ids(prompt, CHUNK_TOKENS)
        (answer,) = self.machine.handle(
            fe.Arrived(at, name, len(prompt), priority, chunks=chunks, may_wait=rng.random() < 0.5)
        )
        if isinstance(answer, fe.SendTo):
            self.sent[answer.instance] = self.sent.get(answer.instance, 0) + 1

    def news(self, at: float) -> None:
        rng, one = self.rng, self.rng.choice(self.there)
        self.told[one] = self.told.get(one, 0) + rng.choice((1, 1, 1, 1, 2))
        chunks = chunk_ids(rng.choice(self.prompts), CHUNK_TOKENS)
        added, removed = chunks[: rng.randint(1, 8)], chunks[rng.randint(0, 8) :]
        news = PrefixNews(self.told[one], added, removed, whole=rng.random() < 0.3)
        self.machine.handle(fe.PrefixesTold(at, one, news))

    def end(self, at: float) -> None:
        if self.requests:
            self.machine.handle(fe.Finished(at, self.rng.choice(self.requests)))

    def loss(self, at: float) -> None:
        """Another one takes its place."""
        if self.rng.random() < 0.2:
            lost = self.there.pop(self.rng.randrange(len(self.there)))
            self.machine.handle(fe.Closed(at, lost))
            self.machine.handle(fe.Departed(at, lost, self.rng.random() < 0.5))
            self.there.append(InstanceId(f"i{self.ids}"))
            self.ids += 1

    def look(self, at: float) -> None:
        self.machine.taker(fe.Arrived(0.0, RequestId(""), self.rng.randint(1, 9000)))


@pytest.mark.parametrize("policy", ["llumnix", "cache-aware"])
def test_what_is_heard_again_is_decided_again(policy: str) -> None:
    for seed in range(6):
        front = Front(policy, seed)
        deeds = (
            front.report,
            front.report,
            front.arrival,
            front.arrival,
            front.news,
            front.end,
            front.loss,
            front.look,
        )
        for k in range(EVENTS):
            front.rng.choice(deeds)(0.01 * k)
        entries = [msgspec.json.decode(line, type=FrontEndEntry) for line in front.written]
        assert replay_recording(front.begin, entries) == []
        reasons = [command.reason for entry in entries for command in entry.commands if isinstance(command, fe.SendTo)]
        alike = [one for one in reasons if len({each.number for each in one.candidates[:2]}) < len(one.candidates[:2])]
        assert alike, "none was decided between equals"
        assert any(reason.candidates[0].cached_tokens for reason in reasons), "nothing was cached anywhere"
