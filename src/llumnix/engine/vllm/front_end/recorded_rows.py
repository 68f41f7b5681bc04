"""Streams and instances as rows of a recorded run (`record/form.py`)."""

from __future__ import annotations

import math

import msgspec

from llumnix.engine.vllm.front_end.session import Session
from llumnix.journal.entries import EndNoted
from llumnix.policy.snapshot import InstanceSnapshot, StepCost
from llumnix.record.form import RecordedRequest, RecordedStep
from llumnix.report.records import InstanceRecord
from llumnix.types import InstanceId, InstanceState, Priority


def request_row(session: Session, arrival_s: float) -> RecordedRequest:
    story, several = session.story, len(session.tokens) > 1
    first_s, last_s = session.first_token_s, session.last_token_s
    end = story.entries[-1].what
    assert isinstance(end, EndNoted)
    sampling = session.request.sampling_params
    first = story.first_token
    failed = end.outcome == "error"
    return RecordedRequest(
        id=story.sequence,
        arrival_s=arrival_s,
        prompt_tokens=end.prompt_tokens,
        output_tokens=end.output_tokens,
        priority=Priority(session.request.priority),
        ttft_s=None if first_s is None else first_s - story.arrived_s,
        tpot_s=(last_s - first_s) / (end.output_tokens - 1) if several and first_s and last_s else None,
        latency_s=None if failed else end.latency_s,
        largest_gap_s=session.largest_gap_s if several else None,
        preemptions=story.preemptions,
        migrations=story.moves,
        instances=tuple(story.places),
        error=end.outcome if failed else "",
        max_tokens=None if sampling is None else sampling.max_tokens,
        queue_s=None if first is None else first.queue_s,
        cached_tokens=0 if first is None else first.cached_tokens,
    )


def stranger_row(at_s: float, instance: InstanceId, state: InstanceState) -> InstanceRecord:
    """One that takes no requests yet, or no more."""
    return InstanceRecord(
        at_s=at_s,
        instance=instance,
        state=state,
        running=0,
        waiting=0,
        free_blocks=0,
        total_blocks=0,
        freeness=-math.inf,
        preemptions=0,
    )


def step_row(at_s: float, load: InstanceSnapshot, cost: StepCost) -> RecordedStep:
    told = msgspec.structs.asdict(cost)
    return RecordedStep(at_s=at_s, instance=load.id, decoding=load.decoding, context_tokens=load.context_tokens, **told)
