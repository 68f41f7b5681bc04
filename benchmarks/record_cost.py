"""What `--record` costs the tokens of a front end.

    python benchmarks/record_cost.py

The streams of a front end without engines, sockets or HTTP: what it does for a token and for a request is all that
there is, so a share of that is the largest that recording can take. 64 requests at once, each with a prompt of 2,048
tokens and 128 tokens in steps of all; with recording and without, in turns. Times are of the event loop's thread, and
beside them what the thread takes that hashes and writes.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from frame.verdict import Figure, at_least, at_most, conclude, median
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason

from llumnix.config import ClusterConfig, MigrationConfig, PolicyConfig
from llumnix.control.front_end import FrontEndMachine
from llumnix.engine.vllm.front_end.client_access import ClientAccess
from llumnix.engine.vllm.front_end.members import Members, Strangers
from llumnix.engine.vllm.front_end.recorder import Recorder
from llumnix.engine.vllm.front_end.stream_log import StreamLog
from llumnix.engine.vllm.front_end.streams import Streams
from llumnix.journal.journal import Journal
from llumnix.policy.snapshot import InstanceSnapshot
from llumnix.record.form import About, Limits
from llumnix.record.read import read_run
from llumnix.types import InstanceId
from llumnix.wire.base import InstanceInfo
from llumnix.wire.news import Report

AT_ONCE, PROMPT_TOKENS, TOKENS = 64, 2048, 128
REQUESTS = 512
ROUNDS = 9
I0 = InstanceId("i0")
GOAL_RATIO = 1.05
"""Of all that streams take, which is a part of what a front end does."""


class Bench:
    """Streams of one instance, recorded or not."""

    def __init__(self, log: StreamLog, folder: Path | None) -> None:
        self.members = Members()
        self._prompt = list(range(PROMPT_TOKENS))
        access = ClientAccess(
            send=_never,
            resume=_never,
            post=_never,
            give_up=_never,
            emit=lambda outputs: None,
            spawn=_never,
            last_word=_never,
        )
        log.recorder = None if folder is None else self._recorder(folder)
        self._recorded = log.recorder
        self.streams = Streams(self.members, FrontEndMachine(PolicyConfig()), access, log, 0)
        load = InstanceSnapshot(id=I0, at=0.0, seq=1, total_blocks=10**6, free_blocks=10**6)
        info = InstanceInfo(id=I0, index=0, slot=0, pid=1, node="", control="", data="")
        self.members.admit(self.members.call(Report(info=info, snapshot=load)))
        self.streams.reported(load)

    def _recorder(self, folder: Path) -> Recorder:
        spec: Any = SimpleNamespace(
            index=0,
            cluster=ClusterConfig(record=str(folder / "runs")),
            book=SimpleNamespace(run_dir=str(folder), front_ends=1),
            secret=b"secret",
        )
        limits = Limits(max_num_seqs=256, max_num_batched_tokens=2048, prefix_caching=True, priorities=True)
        about = About(
            began_at_s=0.0,
            llumnix="",
            engine="",
            model="",
            front_ends=1,
            policy=PolicyConfig(),
            migration=MigrationConfig(),
            limits=limits,
            block_tokens=16,
            state_blocks=0,
            classes=False,
            front_end=0,
            since_s=0.0,
        )
        made = Recorder(spec, self.members, Strangers(), about)
        made.begin()
        return made

    def run(self, first: int) -> tuple[float, float]:
        """µs of this thread for each token; and of all threads beside it for each request."""
        began_ns, all_ns = time.thread_time_ns(), time.process_time_ns()
        for begin in range(first, first + REQUESTS, AT_ONCE):
            self._together([f"cmpl-{number:032x}-0-12345678" for number in range(begin, begin + AT_ONCE)])
        used_ns = time.thread_time_ns() - began_ns
        if self._recorded is not None:
            self._recorded.close()
        beside_ns = time.process_time_ns() - all_ns - used_ns
        return used_ns / REQUESTS / TOKENS / 1e3, beside_ns / REQUESTS / 1e3

    def _together(self, names: list[str]) -> None:
        sampling = SamplingParams(max_tokens=TOKENS)
        for name in names:
            self.streams.open(
                EngineCoreRequest(
                    request_id=name,
                    prompt_token_ids=self._prompt,
                    mm_features=None,
                    sampling_params=sampling,
                    pooling_params=None,
                    arrival_time=time.time(),
                    lora_request=None,
                    cache_salt=None,
                    data_parallel_rank=None,
                )
            )
        for step in range(TOKENS):
            last = FinishReason.LENGTH if step == TOKENS - 1 else None
            outputs = [EngineCoreOutput(request_id=name, new_token_ids=[step], finish_reason=last) for name in names]
            self.streams.sort_out(I0, outputs)


def _never(*_: Any) -> Any:
    raise AssertionError("nothing is sent here")


async def measure() -> tuple[list[float], list[float], float, list[float]]:
    """µs a token without and with, share of the rows that were written, µs beside the loop for each request."""
    log = StreamLog(Journal("f0"))
    without: list[float] = []
    with_it: list[float] = []
    beside: list[float] = []
    written = 0
    for number in range(ROUNDS):
        first = 2 * number * REQUESTS
        with tempfile.TemporaryDirectory(prefix="record-") as folder:
            for recorded in (False, True) if number % 2 else (True, False):
                bench = Bench(log, Path(folder) if recorded else None)
                token_us, beside_us = bench.run(first + recorded * REQUESTS)
                (with_it if recorded else without).append(token_us)
                if recorded:
                    beside.append(beside_us)
            written += len(read_run(Path(folder) / "runs").requests)
    return without, with_it, written / ROUNDS / REQUESTS, beside


def main() -> int:
    without, with_it, written, beside = asyncio.run(measure())
    ratios = [one / other for one, other in zip(with_it, without, strict=True)]
    more_us = (statistics.median(with_it) - statistics.median(without)) * TOKENS
    return conclude(
        median("streams, of a token", without, unit="µs"),
        median("… with recording", with_it, unit="µs"),
        median("ratio", ratios, at_most(GOAL_RATIO)),
        Figure("more for a request, on the event loop", more_us, unit="µs"),
        median("for a request, in the thread that hashes and writes", beside, unit="µs"),
        Figure("requests that were written", 100 * written, at_least(100), "%"),  # else it cost less than it should
    )


if __name__ == "__main__":
    sys.exit(main())
