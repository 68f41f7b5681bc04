"""Streams of every kind that a family of models is asked, on an instance that is drained under them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from families.table import FAMILIES, family_engine_flags
from frame.admin import Admin
from frame.equality import differences, undisturbed, with_stop
from frame.kinds import Kind, make
from frame.server import llumnix_server
from frame.stream import Output, Said, Streaming, open_session
from frame.verdict import Figure, at_most

from llumnix.control.scheduler_events import DrainReport

NAMES = [name for name, family in FAMILIES.items() if not family.alone]
"""Of families that say the same whatever is computed beside them."""

_TOKENS_BEFORE = 5
_FLAGS = (
    *("--no-migration", "--max-num-seqs", "64"),  # some requests are several sequences
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
)


@dataclass(slots=True)
class MixedDrain:
    family: str
    report: DrainReport
    outputs: list[Output]
    still: list[Output]
    """The same requests, left alone."""

    def figures(self, goal_s: float) -> Sequence[Figure]:
        name = self.family
        pairs = [
            (output.sequences.get(index, Said()), whole)
            for output, still in zip(self.outputs, self.still, strict=True)
            for index, whole in still.sequences.items()
        ]
        found = [differences(one, other) for one, other in pairs]
        failed = [output.failure for output in (*self.outputs, *self.still) if output.failure]
        for problem in sorted({problem for _, problems in found for problem in problems} | set(failed)):
            print(f"{name}: {problem}")
        empty_s = self.report.seconds if self.report.outcome == "empty" else None
        return (
            Figure(f"{name}: running when it began", self.report.requests),
            Figure(f"{name}: empty after", empty_s, at_most(goal_s), "s"),
            Figure(f"{name}: moved", self.report.moved),
            Figure(f"{name}: failed streams", len(failed), at_most(0)),
            Figure(f"{name}: tokens compared", sum(len(whole.tokens) for _, whole in pairs)),
            Figure(f"{name}: differing tokens", sum(differing for differing, _ in found), at_most(0)),
            Figure(f"{name}: other problems", sum(len(problems) for _, problems in found), at_most(0)),
        )


def drain_kinds(family: str, streams: int, seed: int, limit_s: float) -> MixedDrain:
    """Of two instances, the one that has all the streams."""
    names = FAMILIES[family].kinds
    kinds = [make(names[n % len(names)], random.Random(f"{seed}-{n}")) for n in range(streams)]
    with family_engine_flags(family) as flags, llumnix_server(flags, *_FLAGS, instances=2) as server:
        return asyncio.run(_drain(server.url, family, kinds, limit_s))


async def _drain(url: str, family: str, kinds: list[Kind], limit_s: float) -> MixedDrain:
    async with open_session(url) as session:
        kinds = [await with_stop(session, kind, n) for n, kind in enumerate(kinds)]
        streams = [
            Streaming(session, kind.body | {"cache_salt": f"s{n}"}, path=kind.path, name=f"s{n}", engine=0)
            for n, kind in enumerate(kinds)
        ]
        for stream in streams:
            await stream.reaches(_TOKENS_BEFORE)
        report = await drain(Admin(session), limit_s)
        outputs = [await stream for stream in streams]
        still = [await undisturbed(session, kind, f"u{n}") for n, kind in enumerate(kinds)]
    return MixedDrain(family, report, outputs, still)


async def drain(admin: Admin, limit_s: float) -> DrainReport:
    """Of the instance that has all requests; as soon as it has ended, or as it stands at the limit. Raises SystemExit
    if it is refused."""
    (instance,) = {row.instance for row in await admin.requests()}
    began_s = time.monotonic()
    if (status := await admin.drain(instance, f"?timeout_s={limit_s}")) >= 400:
        raise SystemExit(f"the drain was refused: HTTP {status}")
    while True:
        report = next(report for report in await admin.drains() if report.instance == instance)
        if report.outcome != "draining" or time.monotonic() >= began_s + limit_s:
            return report
        await asyncio.sleep(0.05)
