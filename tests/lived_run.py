"""What a server would have recorded of a simulated run: whose costs are known."""

from __future__ import annotations

from math import exp
from random import Random

import msgspec

from llumnix.record.form import RecordedRequest, RecordedStep
from llumnix.record.writer import EndedRow, Looked, RunRow
from llumnix.report.records import InstanceRecord, Records
from llumnix.sim.driver import sim_requests, simulate
from llumnix.sim.profiles.cost_model import (
    DecodeProfile,
    HostProfile,
    MemoryProfile,
    MigrationProfile,
    PrefillProfile,
    Profile,
    SchedulerProfile,
    step_cost,
)
from llumnix.sim.setup import RunSetup
from llumnix.workload.workload import Workload, load_workload
from recorded_run import step, tried

BLOCK_TOKENS, BLOCK_BYTES = 32, 131072
TRUTH = Profile(
    name="truth",
    origin="made up",
    memory=MemoryProfile(total_blocks=96, block_tokens=BLOCK_TOKENS, block_bytes=BLOCK_BYTES),
    prefill=PrefillProfile(base_ms=20.0, per_token_ms=0.2),
    decode=DecodeProfile(batch=(1, 33), batch_ms=(20.2, 26.6), per_context_token_ms=0.001),
    migration=MigrationProfile(gigabytes_per_s=0.5, stage_ms=2.0),
    scheduler=SchedulerProfile(max_num_seqs=64, max_num_batched_tokens=512),
    host=HostProfile(request_ms=3.0, start_up_s=10.0),
)
WORKLOAD = load_workload("gamma:rate=5,cv=3,prompt=zipf128,output=zipf256,cap=600,requests=600,seed=4")
SHORT = load_workload("gamma:rate=5,cv=3,prompt=zipf128,output=zipf128,cap=300,requests=80,seed=4")
"""Simulated in a hundredth of a second, also behind all else that a machine does."""


def lived(workload: Workload = WORKLOAD, instances: int = 4) -> Records:
    setup = RunSetup(instances=instances, profile=TRUTH, sample_interval_s=1.0)
    return simulate(sim_requests(workload), setup).records()


def recorded(records: Records) -> list[RunRow]:
    """As a server would have written it down; each look at steps is a few per cent off."""
    chance = Random(7)
    lengths = {request.id: request.prompt_tokens + request.output_tokens // 2 for request in records.requests}
    requests = [RecordedRequest(**msgspec.structs.asdict(each)) for each in records.requests]
    rows: list[RunRow] = [EndedRow(each, (), 0) for each in requests]
    for move in records.migrations:
        said = msgspec.structs.asdict(move)
        tokens = lengths[move.request_id]
        blocks = -(-tokens // BLOCK_TOKENS)
        took_ms = 1e3 * (move.stages * TRUTH.migration.stage_ms / 1e3 + blocks * BLOCK_BYTES / 0.5e9)
        said |= {"bytes": blocks * BLOCK_BYTES, "copy_ms": took_ms * exp(chance.gauss(0, 0.05)), "tokens": tokens}
        rows.append(tried(said.pop("request_id"), said.pop("at_s"), **said))
    for at_s in sorted({row.at_s for row in records.instances}):
        seen = [row for row in records.instances if row.at_s == at_s]
        rows.append(Looked(seen, [_look(row, chance) for row in seen if row.running]))
    return rows


def _look(row: InstanceRecord, chance: Random) -> RecordedStep:
    cost = msgspec.structs.asdict(step_cost(TRUTH, exp(chance.gauss(0, 0.03))))
    return step(row.at_s, row.instance, row.running, round(row.running * chance.uniform(50, 300)), **cost)
