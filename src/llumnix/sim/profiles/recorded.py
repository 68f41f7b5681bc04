"""A cost profile from what a server recorded in use: no idle server is needed, and nothing is typed by hand.

    decode      what instances said that their steps cost (`control/step_fit.py`), at the load that they had then
    prefill     likewise, for each token of a prompt
    request     the quickest first tokens, less their prefill: what a request costs beside the steps
    migration   bytes and rounds of the moves against the time that they took
    start-up    from when an instance was first named until it took requests

What was not seen is as by default, and is said. `Fit.notes` tells of each part how well it fits, and what was seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from llumnix.errors import UsageError
from llumnix.record.form import RecordedMove, RecordedRequest, RecordedStep
from llumnix.record.read import RecordedRun
from llumnix.report.records import MOVED, InstanceRecord
from llumnix.report.summary import by_instance
from llumnix.sim.profiles.cost_model import (
    DecodeProfile,
    HostProfile,
    MemoryProfile,
    MigrationProfile,
    PrefillProfile,
    Profile,
    SchedulerProfile,
)
from llumnix.sim.profiles.live import Numbers, Unseen, least_squares
from llumnix.types import InstanceState

FEWEST_LOOKS = 20
"""At steps, for a profile."""

FEWEST_MOVES = 5
"""For a bandwidth."""

_QUICKEST = 1
"""Percentile of the first tokens that waited for nothing."""


@dataclass(frozen=True, slots=True)
class Fit:
    profile: Profile
    notes: tuple[str, ...]
    """A sentence for each part."""


def fit_run(run: RecordedRun, name: str) -> Fit:
    """Raises UsageError if too little was recorded."""
    decode, decode_note = _decode(run.steps)
    prefill, prefill_note = _prefill(run.steps, run.requests, decode)
    request_ms, request_note = _request_ms(run.requests, prefill, run.about.limits.max_num_batched_tokens)
    memory, migration, migration_note = _migration(run)
    start_up_s, start_note = _start_up_s(run.instances)
    limits = run.about.limits
    profile = Profile(
        name=name,
        origin=f"Fitted by `llumnix profile --from` to a recorded run of {run.about.model}. {decode_note}",
        memory=memory,
        prefill=prefill,
        decode=decode,
        migration=migration,
        scheduler=SchedulerProfile(
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            priorities=limits.priorities,
        ),
        host=HostProfile(request_ms=request_ms, start_up_s=start_up_s),
    )
    return Fit(profile, (decode_note, prefill_note, request_note, migration_note, start_note))


def _decode(steps: Sequence[RecordedStep]) -> tuple[DecodeProfile, str]:
    """So much in any case, for each request, and for each token of context."""
    looks = [step for step in steps if step.decoding and step.decode_step_ms > 0]
    sizes = np.array([float(step.decoding) for step in looks])
    if len(looks) < FEWEST_LOOKS or len(set(sizes)) < 2:
        raise UsageError(
            f"The recorded run has {len(looks)} looks at the steps of instances, one a second while they do something, "
            f"and the largest batch was {int(sizes.max(initial=0))}; a profile needs {FEWEST_LOOKS}, and batches of "
            "two sizes."
        )
    smallest, largest = int(sizes.min()), int(sizes.max())
    context = np.array([float(step.context_tokens) for step in looks])
    step_ms = np.array([step.decode_step_ms for step in looks])
    fixed_ms, request_ms, context_ms = least_squares(np.stack([np.ones_like(sizes), sizes, context], axis=1), step_ms)
    decode = DecodeProfile(
        batch=(smallest, largest),
        batch_ms=(max(fixed_ms + request_ms * smallest, 1e-3), max(fixed_ms + request_ms * largest, 1e-3)),
        per_context_token_ms=context_ms,
    )
    fitted = np.array([decode.step_ms(step.decoding, step.context_tokens) for step in looks])
    return decode, (
        f"Decode steps are off by {_off(fitted, step_ms)}, over {len(looks):,} looks with batches of {smallest} to "
        f"{largest} and {context.min():,.0f} to {context.max():,.0f} tokens of context; what is beyond is extrapolated."
    )


def _prefill(
    steps: Sequence[RecordedStep], requests: Sequence[RecordedRequest], decode: DecodeProfile
) -> tuple[PrefillProfile, str]:
    tokens_us = [step.prefill_token_us for step in steps if step.prefill_token_us > 0]
    if not tokens_us:
        raise UsageError("The recorded run does not tell what a token of a prompt costs: all its steps were alike.")
    low, middle, high = (float(each) for each in np.percentile(tokens_us, [25, 50, 75]))
    base_ms = min(float(np.median([step.fixed_ms for step in steps])), decode.batch_ms[0])
    lengths = [uncached(request) for request in requests] or [0]
    return PrefillProfile(base_ms=base_ms, per_token_ms=middle / 1e3), (
        f"A token of a prompt takes {middle / 1e3:.3g} ms, in half of the looks {low / 1e3:.3g} to {high / 1e3:.3g}; "
        f"prompts had {min(lengths):,} to {max(lengths):,} tokens to compute, and longer ones may take more for each."
    )


def uncached(request: RecordedRequest) -> int:
    return max(1, request.prompt_tokens - request.cached_tokens)


def _request_ms(requests: Sequence[RecordedRequest], prefill: PrefillProfile, step_tokens: int) -> tuple[float, str]:
    beside = [
        1e3 * request.ttft_s - prefill.compute_ms(tokens) - ceil(tokens / step_tokens) * prefill.base_ms
        for request in requests
        if request.ttft_s is not None and (tokens := uncached(request))
    ]
    if not beside:
        return 0.0, "No first token was seen: a request costs nothing beside its steps."
    request_ms = max(0.0, float(np.percentile(beside, _QUICKEST)))
    return request_ms, f"A request takes {request_ms:.3g} ms beside its steps, by the quickest of {len(beside):,}."


def _migration(run: RecordedRun) -> tuple[MemoryProfile, MigrationProfile, str]:
    about, usual = run.about, Unseen(total_blocks=1)
    blocks_of = _Blocks(about.block_tokens, about.state_blocks)
    whole = [(move, blocks, move.copy_ms) for move in run.moves if (blocks := blocks_of(move)) and move.copy_ms]
    enough = len(whole) >= FEWEST_MOVES
    block_bytes, bandwidth, stage_ms = usual.block_bytes, usual.gigabytes_per_s, usual.stage_ms
    note = f"{len(whole)} moves copied something, too few for a bandwidth: {bandwidth:g} GB/s is assumed."
    if enough:
        block_bytes = max(1, round(float(np.median([move.bytes / blocks for move, blocks, _ in whole]))))
        columns = np.array([[float(move.stages), float(move.bytes)] for move, _, _ in whole])
        copy_ms = np.array([taken_ms for _, _, taken_ms in whole])
        stage_ms, byte_ms = least_squares(columns, copy_ms)
        bandwidth = 1e-6 / byte_ms if byte_ms else 1e3
        note = f"Copies are off by {_off(columns @ np.array([stage_ms, byte_ms]), copy_ms)}, over {len(whole):,} moves."
    totals = [row.total_blocks for row in run.instances if row.total_blocks]
    if not totals:
        raise UsageError("The recorded run has no instance with memory in it.")
    memory = MemoryProfile(
        total_blocks=max(totals),
        block_tokens=about.block_tokens,
        block_bytes=block_bytes,
        state_blocks=about.state_blocks,
    )
    return (
        memory,
        MigrationProfile(gigabytes_per_s=bandwidth, stage_ms=stage_ms, slowdown=usual.slowdown),
        (f"{note} That steps take {usual.slowdown:.0%} longer beside a copy is assumed."),
    )


@dataclass(frozen=True, slots=True)
class _Blocks:
    """That a move copied, by how long its request was."""

    block_tokens: int
    state_blocks: int

    def __call__(self, move: RecordedMove) -> int:
        if move.outcome != MOVED or not move.bytes:
            return 0
        return max(0, ceil(move.tokens / self.block_tokens) + self.state_blocks - move.blocks_skipped)


def _start_up_s(rows: Sequence[InstanceRecord]) -> tuple[float, str]:
    taken: list[float] = []
    first_s = min((row.at_s for row in rows), default=0.0)
    for series in by_instance(rows).values():
        serving = next((row.at_s for row in series if row.state is InstanceState.RUNNING), None)
        began = series[0]
        if serving is not None and began.state is InstanceState.STARTING and began.at_s > first_s:
            taken.append(serving - began.at_s)
    if not taken:
        usual_s = Unseen(total_blocks=1).start_up_s
        return usual_s, f"No instance was seen to start: {usual_s:g} s is assumed."
    start_up_s = float(np.median(taken))
    return start_up_s, f"An instance starts in {start_up_s:.3g} s, the median of {len(taken)}, to a second."


def _off(fitted: Numbers, measured: Numbers) -> str:
    half, most = np.percentile(np.abs(fitted / measured - 1), [50, 90])
    return f"{half:.0%} (90 % of them by at most {most:.0%})"
