"""A recorded run as one front end writes it, of what a test says that happened."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llumnix.config import MigrationConfig, PolicyConfig
from llumnix.record.form import About, Limits, RecordedMove, RecordedRequest, RecordedStep
from llumnix.record.writer import EndedRow, Looked, RunRow, RunWriter, Tried
from llumnix.report.records import InstanceRecord
from llumnix.types import InstanceState

KEY = b"k" * 32
LIMITS = Limits(max_num_seqs=64, max_num_batched_tokens=512, prefix_caching=True, priorities=True)
UNIT_TOKENS = 64


def about(**said: Any) -> About:
    usual: dict[str, Any] = {
        "began_at_s": 1000.0,
        "llumnix": "0",
        "engine": "vllm 0",
        "model": "tiny",
        "front_ends": 1,
        "policy": PolicyConfig(),
        "migration": MigrationConfig(),
        "limits": LIMITS,
        "block_tokens": 32,
        "state_blocks": 0,
        "classes": False,
        "front_end": 0,
        "since_s": 0.0,
    }
    return About(**usual | said)


def ended(name: str, arrival_s: float = 1.0, tokens: list[int] | None = None, salt: int = 0, **said: Any) -> EndedRow:
    prompt = tokens if tokens is not None else [1] * 8
    usual: dict[str, Any] = {"output_tokens": 3, "ttft_s": 0.1, "tpot_s": 0.02, "latency_s": 0.14}
    record = RecordedRequest(id=name, arrival_s=arrival_s, prompt_tokens=len(prompt), **usual | said)
    return EndedRow(record, prompt, salt)


def tried(name: str, at_s: float = 2.0, **said: Any) -> Tried:
    usual: dict[str, Any] = {"source": "i0", "target": "i1", "outcome": "moved", "tokens": 100}
    return Tried(RecordedMove(at_s=at_s, request_id=name, **usual | said))


def instance(at_s: float, name: str, state: InstanceState = InstanceState.RUNNING, **said: Any) -> InstanceRecord:
    counts = dict.fromkeys(("running", "waiting", "preemptions"), 0)
    usual: dict[str, Any] = {**counts, "free_blocks": 90, "total_blocks": 96, "freeness": 90.0}
    return InstanceRecord(at_s=at_s, instance=name, state=state, **usual | said)


def step(at_s: float, name: str, decoding: int, context_tokens: int, **said: Any) -> RecordedStep:
    usual = {"fixed_ms": 20.0, "prefill_token_us": 200.0, "request_us": 200.0, "context_token_us": 0.0}
    return RecordedStep(at_s=at_s, instance=name, decoding=decoding, context_tokens=context_tokens, **usual | said)


def looked(*instances: InstanceRecord, steps: Iterable[RecordedStep] = ()) -> Looked:
    return Looked(list(instances), list(steps))


def write_run(
    folder: Path, rows: Iterable[RunRow], *, of: About | None = None, unit_tokens: int = UNIT_TOKENS, mb: float = 8
) -> RunWriter:
    writer = RunWriter(folder, of or about(), unit_tokens, KEY, int(mb * 2**20))
    for row in rows:
        writer.put(row)
    writer.close()
    return writer
